"""A model without its data: what transformers would make of a folder, held against the folder before anything runs.

What transformers only warns about while it loads (tensors that are missing and drawn at random, that belong nowhere,
or have another shape) is an error here, and so is what could be opened but not simulated or written back.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretune.storage.cache import cache_dir
from foretune.storage.digests import digest_of
from foretune.storage.errors import BadInput, StorageFault
from foretune.storage.places import Place
from foretune.tasks.loading.adapters import AdapterTargets, moved_names
from foretune.tasks.loading.files import ModelFiles, model_files
from foretune.tasks.loading.folders import ModelConfig, model_config
from foretune.tasks.loading.foreign import read_json, reading
from foretune.tasks.loading.headers import FLOATS, Stored
from foretune.tasks.loading.models import (
    building,
    linear_for_conv1d,
    quiet_transformers,
    refuse_loading_info,
    refuse_unsupported,
)
from foretune.tasks.loading.settings import ModelSettings
from foretune.tasks.loading.stored import StoredWeights, stored_names, torch_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VERSION = 1
"""Of the checks below: a folder that passed an older version of them is looked at again."""


def check_model(folder: Path, settings: ModelSettings, targets: AdapterTargets | None = None) -> None:
    """Raise BadInput for a folder whose model cannot be simulated, with what is wrong and the remedy.

    Torch is imported once per model and version of transformers: that a folder has passed is remembered by its
    content in the user's cache. Models that bring code of their own are looked at when they are opened.
    """
    files = model_files(folder, settings.allow_pickle)
    config = model_config(folder)
    layout = files.layout()
    refuse_config(folder, config)
    refuse_layout(folder, config, layout)
    memo = Place(cache_dir() / "checked" / digest_of([VERSION, files.digest, _versions(), _asked(settings, targets)]))
    with contextlib.suppress(StorageFault):
        if memo.exists():
            return
    if refuse_unsupported(folder, settings):
        return
    with building:
        _compare(files, layout, targets)
    with contextlib.suppress(StorageFault):
        memo.write_bytes(b"")


def _versions() -> list[str]:
    return [importlib.metadata.version(library) for library in ("transformers", "peft")]


def _asked(settings: ModelSettings, targets: AdapterTargets | None) -> list[Any]:
    return [settings.trust_remote_code, targets and targets.model_dump()]


def refuse_config(folder: Path, config: ModelConfig) -> None:
    """BadInput for kinds of models that are not simulated, as far as config.json tells."""
    if config.quantization_config:
        method = config.quantization_config.get("quant_method", "unknown method")
        raise BadInput(f"model {folder}: its weights are quantised ({method}); give the unquantised model")
    if config.is_encoder_decoder:
        raise BadInput(
            f"model {folder}: an encoder-decoder ({config.model_type}), which is not simulated; "
            "give a causal language model"
        )
    masked = [name for name in config.architectures or [] if name.endswith("ForMaskedLM")]
    if masked:
        raise BadInput(
            f"model {folder}: {masked[0]} predicts masked tokens, not the next one; give a causal language model"
        )


MASKS = ("bias", "masked_bias", "position_ids", "token_type_ids", "num_batches_tracked")
"""Buffers that old checkpoints hold as whole numbers."""


def refuse_layout(folder: Path, config: ModelConfig, layout: dict[str, Stored]) -> None:
    """BadInput for stored numbers that no gradient moves, and for sizes in config.json that no tensor has."""
    for name, form in layout.items():
        whole = re.fullmatch(r"(BOOL|[UI]\d+)", form.dtype) is not None
        if form.dtype not in FLOATS and not (whole and name.rpartition(".")[2] in MASKS and len(form.shape) != 1):
            raise _quantised(folder, name, form)
    if not layout:
        return
    depth, width = config.text.depth, config.text.width
    numbers = [int(n) for name in layout for n in re.findall(r"\.(\d+)\.", name)[:1]]
    if depth is not None and depth > len(layout):
        raise BadInput(
            f"model {folder}: config.json says {depth:,} layers, its files hold {max(numbers, default=-1) + 1} in "
            f"{len(layout)} tensors; give the config.json that belongs to these weights"
        )
    sizes = {size for form in layout.values() for size in form.shape}
    if width is not None and width not in sizes:
        raise BadInput(
            f"model {folder}: config.json says a width of {width:,}, no tensor of its files has that size; "
            "give the config.json that belongs to these weights"
        )


def _quantised(folder: Path, name: str, form: Stored) -> BadInput:
    return BadInput(
        f"model {folder}: its weights are quantised (tensor {name[:120]} is stored as {form.dtype}); "
        "give the unquantised model"
    )


def _compare(files: ModelFiles, layout: dict[str, Stored], targets: AdapterTargets | None) -> None:
    folder = files.folder
    layout = layout or StoredWeights(folder).layout()
    model, info = _built(folder, layout)
    refuse_loading_info(folder, type(model).__name__, info)
    refuse_layout(folder, model_config(folder), layout)
    for name, _ in model.named_parameters():
        for key in stored_names(model, name, layout):
            if layout[key].dtype not in FLOATS:
                raise _quantised(folder, key, layout[key])
    if (folder / "generation_config.json").exists():
        from transformers import GenerationConfig

        read_json(folder / "generation_config.json")
        with reading(folder / "generation_config.json"):
            GenerationConfig.from_pretrained(folder, local_files_only=True)
    if targets is None:
        return
    linear_for_conv1d(model)
    for name in moved_names(model, targets):
        if not stored_names(model, name, layout):
            what = "adapter.method full" if targets.method == "full" else f"adapter.target_modules: {name}"
            raise BadInput(
                f"{what}: {type(model).__name__} keeps {name} in another layout than its files, so that no checkpoint "
                "could be written; adapt other modules, such as [q_proj, v_proj] with adapter.method lora"
            )
    fused = [name for name, weight in model.named_parameters() if weight.dim() == 3 and ".experts." in name]
    if targets.method == "full" and fused:
        raise BadInput(
            f"adapter.method full: {type(model).__name__} keeps its experts in one tensor ({fused[0]}), through which "
            "torch takes no forward derivative; adapt [q_proj, v_proj] with adapter.method lora"
        )


def _built(folder: Path, layout: dict[str, Stored]) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model on the meta device, from the forms of the stored tensors, and what transformers says about them."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    quiet_transformers()
    with reading(f"model {folder}", "give the config.json that belongs to these weights"):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        kinds = AutoModelForCausalLM._model_mapping
        if type(config) not in kinds:
            raise BadInput(
                f"model {folder}: {type(config).__name__.removesuffix('Config')} is no causal language model; give one"
            )
        kind: Any = kinds[type(config)]
        kind = kind[0] if isinstance(kind, tuple) else kind
        empty = {
            name: torch.empty(form.shape, dtype=torch_dtype(form.dtype), device="meta") for name, form in layout.items()
        }
        return kind.from_pretrained(
            None,
            config=config,
            state_dict=empty,
            device_map="meta",
            attn_implementation="eager",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
