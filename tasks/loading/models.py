"""Models: opened once per process, frozen, and called as functions of their weights."""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretune.storage.errors import BadInput
from foretune.tasks.loading.autocast import AUTOCAST, autocast_here, autocasting
from foretune.tasks.loading.files import model_files
from foretune.tasks.loading.folders import model_config, model_fingerprint
from foretune.tasks.loading.foreign import reading
from foretune.tasks.loading.foreign_code import refuse_foreign_code
from foretune.tasks.loading.placement import keep_resident, offloaded, placing, stored_value
from foretune.tasks.loading.settings import ModelSettings
from foretune.tasks.loading.shared_tensors import share_equal
from foretune.tasks.loading.witnesses import weights_digest
from foretune.tasks.numerics.work import work_here

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Parameter
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from foretune.tasks.numerics.batches import Batch


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A causal language model in eval mode whose parameters take no gradient.

    Every linear weight is [out, in]: GPT-2's Conv1D modules, which store [in, out], are replaced by linear
    ones of the same name. `transposed` lists their weights, so that a checkpoint is written as the base is.
    """

    model: PreTrainedModel
    folder: Path
    device: torch.device
    dtype: torch.dtype
    transposed: frozenset[str]
    digest: str  # of the weights as they were read, see `weights_digest`
    gradient_checkpointing: bool = False  # see `recomputed`
    autocast: bool = False  # whether its products are in bfloat16
    moved_names: dict[str, list[str]] = dataclasses.field(default_factory=dict, repr=False)
    """What moves by the settings that say so: to find it peft wraps a copy, a third of a second a time."""

    @property
    def config(self) -> Any:
        return self.model.config

    @functools.cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The folder's tokenizer. Raises BadInput where there is none."""
        from transformers import AutoTokenizer

        with reading(f"model {self.folder}: its tokenizer", "add or mend its files"):
            return AutoTokenizer.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)

    def weight(self, name: str) -> Parameter:
        """The parameter of this name, as in `model.named_parameters`; from now on it stays on its device."""
        if self.model.get_parameter(name).is_meta:
            keep_resident(self.model, name)
        return self.model.get_parameter(name)

    def values(self, name: str) -> Tensor:
        """The values of this parameter, for once, wherever the device map put it."""
        return stored_value(self.model, name)

    def twin(self) -> LoadedModel:
        """The same tensors in modules of its own, so that hooks and swapped weights stay with one thread."""
        if getattr(self.model, "hf_device_map", None):
            return self  # placed and offloaded layers are bound to their modules
        shared = {id(t): t for t in (*self.model.parameters(), *self.model.buffers())}
        return dataclasses.replace(self, model=copy.deepcopy(self.model, shared))


RESIDENT_MODELS = 2  # the base and its predicted checkpoint
_residents: OrderedDict[tuple[str, str, str], tuple[LoadedModel, dict[int, LoadedModel]]] = OrderedDict()
building = threading.RLock()
"""Held while a model or an adapter is built: transformers and peft patch torch's classes for that long. Held while
these libraries are first imported too: a thread that comes in between sees them half made."""


def load_model(folder: Path, settings: ModelSettings) -> LoadedModel:
    """Open the model in `folder`; the last two of a process stay open, and each thread has its own modules.

    Raises BadInput for a folder without config or weights, pickled or quantised weights, code that comes with
    the model, whatever this machine forbids, missing or NaN tensors, and architectures that are no causal language
    model.
    """
    refuse_foreign_code("model", settings)
    read_again = str(folder) if settings.device_map else ""  # the place that offloaded layers are fetched from
    key = (model_fingerprint(folder), read_again, settings.model_dump_json(exclude={"name_or_path", "revision"}))
    with building:
        if key not in _residents:
            opened = _open(folder, settings)
            for other, _ in _residents.values():
                share_equal(opened.model, other.model)
            _residents[key] = (opened, {})
            while len(_residents) > RESIDENT_MODELS:
                _residents.popitem(last=False)
        _residents.move_to_end(key)
        original, twins = _residents[key]
        thread = threading.get_ident()
        if thread not in twins or twins[thread].folder != folder:
            twins[thread] = dataclasses.replace(original.twin(), folder=folder)
        return twins[thread]


def close_models() -> None:
    """Forget the open models: the next `load_model` reads its folder again."""
    with building:
        _residents.clear()


def _open(folder: Path, settings: ModelSettings) -> LoadedModel:
    import torch

    files = model_files(folder, settings.allow_pickle)
    files.layout()  # headers that lie are seen before memory is asked for
    refuse_unsupported(folder, settings)
    device = choose_device(settings.device)
    model = _from_pretrained(folder, settings, pickled=files.pickled)
    if settings.device_map is None:
        model.to(device)  # pyright: ignore[reportArgumentType]
    model.eval().requires_grad_(False)
    model.register_forward_hook(count_work, with_kwargs=True)
    if offloaded(model) and _conv1d_modules(model):
        raise BadInput(f"model {folder}: its Conv1D layers cannot be offloaded; set model.device_map to null")
    transposed = linear_for_conv1d(model)
    _refuse_non_finite(folder, model)
    at = device if model.device.type == "meta" else model.device
    dtype, digest = getattr(torch, settings.dtype), weights_digest(model)
    return LoadedModel(model, folder, at, dtype, transposed, digest, settings.gradient_checkpointing)


def count_work(model: Any, args: tuple[Any, ...], inputs: dict[str, Any], output: Any) -> None:
    """Forward hook of a whole model: its tokens count as forward work, and as backward work at each backward."""
    ids = inputs["input_ids"] if "input_ids" in inputs else args[0]
    count_tokens(ids.numel(), getattr(output, "logits", None))  # a trainer's fused loss gives none


def count_tokens(tokens: float, output: Tensor | None) -> None:
    """So many tokens went forward to `output`, and go backward at each backward from it."""
    import torch

    work = work_here()
    tokens = tokens * AUTOCAST if autocast_here(output) else tokens
    tangents = torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore[reportAttributeAccessIssue]
    work.forward(2 * tokens if tangents else tokens)  # forward mode carries a tangent beside every value
    if not tangents and output is not None and output.requires_grad:
        output.register_hook(lambda gradient: work.backward(tokens))


def choose_device(name: str) -> torch.device:
    """The torch device of a setting: `auto` is CUDA where there is one. Raises BadInput for a missing GPU."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    found = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= found:
        raise BadInput(f"device {name}: this machine has {found} CUDA devices; set device: auto")
    return device


def refuse_unsupported(folder: Path, settings: ModelSettings) -> bool:
    """Whether the model runs code of its own. BadInput for such code that is not trusted, for architectures that
    transformers does not know, and for quantised weights."""
    from transformers import __version__
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = model_config(folder)
    own_code = bool(config.auto_map) and config.model_type not in CONFIG_MAPPING
    if own_code and not settings.trust_remote_code:
        raise BadInput(
            f"model {folder}: it runs code of its own (auto_map in config.json); set "
            "model.trust_remote_code: true if you have read and trust that code"
        )
    if not own_code and config.model_type not in CONFIG_MAPPING:
        raise BadInput(
            f"model {folder}: config.json says model_type {config.model_type or 'nowhere'}, an architecture that "
            f"transformers {__version__} does not know; give a model of a known one"
        )
    if quantised := config.quantization_config:
        method = quantised.get("quant_method", "unknown method")
        raise BadInput(f"model {folder}: its weights are quantised ({method}); give the unquantised model")
    return own_code


def _from_pretrained(folder: Path, settings: ModelSettings, pickled: bool) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM

    quiet_transformers()
    with reading(f"model {folder}", "copy the folder again or give another model"):
        model, info = AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
            folder,
            dtype=getattr(torch, settings.dtype),
            attn_implementation=settings.attn_implementation,
            trust_remote_code=settings.trust_remote_code,
            use_safetensors=not pickled,
            local_files_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **placing(settings, model_fingerprint(folder)),
        )
    refuse_loading_info(folder, type(model).__name__, info)
    return model


LEFT_OVER = re.compile(r"(^|\.)(masked_bias|position_ids|inv_freq|attn\.bias|attention\.bias)$")
"""Masks and tables that old versions of transformers stored and that models compute today."""


def refuse_loading_info(where: Path, kind: str, info: dict[str, Any]) -> None:
    """BadInput for what transformers only warns about: tensors of other shapes, made up, or left out."""
    if info["mismatched_keys"]:
        name, stored, wanted = min(info["mismatched_keys"])
        raise BadInput(
            f"model {where}: tensor {name} is {list(stored)}, config.json asks for "
            f"{list(wanted)}; give the config.json that belongs to these weights"
        )
    if missing := info["missing_keys"]:
        raise BadInput(
            f"model {where}: {len(missing)} tensors are missing, first {min(missing)}; copy the folder again"
        )
    if unexpected := [name for name in info["unexpected_keys"] if not LEFT_OVER.search(name)]:
        raise BadInput(
            f"model {where}: {len(unexpected)} stored tensors are no part of a {kind}, first {min(unexpected)}; "
            "give the config.json that belongs to these weights, or the weights without them"
        )
    if errors := info["error_msgs"]:
        raise BadInput(f"model {where}: cannot be read ({str(errors[0])[:300]}); copy the folder again")


def quiet_transformers() -> None:
    """No progress bars and advice from transformers: our own output says what is going on."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _conv1d_modules(model: PreTrainedModel) -> list[tuple[str, Any]]:
    from transformers.pytorch_utils import Conv1D

    return [(name, module) for name, module in model.named_modules() if isinstance(module, Conv1D)]


def linear_for_conv1d(model: PreTrainedModel) -> frozenset[str]:
    """Put a linear module in the place of every Conv1D; the names of their weights, which are stored transposed."""
    from torch import nn

    replaced = _conv1d_modules(model)
    for name, module in replaced:
        linear = nn.Linear(*module.weight.shape, device="meta")
        linear.weight = nn.Parameter(module.weight.T.contiguous(), requires_grad=False)
        linear.bias = module.bias
        model.set_submodule(name, linear.eval())
    return frozenset(f"{name}.weight" for name, _ in replaced)


def _refuse_non_finite(folder: Path, model: PreTrainedModel) -> None:
    for name, parameter in model.named_parameters():
        if not all_finite(stored_value(model, name) if parameter.is_meta else parameter):
            raise BadInput(
                f"model {folder}: tensor {name} has NaN or infinite values; "
                "copy the folder again or give another checkpoint"
            )


def all_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite."""
    import torch

    # The sum shows it at a tenth of the cost of looking at each; a sum that overflows is looked at again.
    return bool(torch.isfinite(tensor.sum(dtype=torch.float32))) or bool(torch.isfinite(tensor).all())


def functional_caller(loaded: LoadedModel, names: Iterable[str]) -> Callable[[dict[str, Tensor], Batch], Tensor]:
    """`call(weights, batch)` -> logits [b, s, vocab] with `weights` in place of these parameters.

    The model itself stays as it is. Works under autograd and, with eager attention, in torch.func's forward
    and reverse mode. A weight that is tied is replaced wherever it is used. Rows are padded on the right, so
    positions need not be given. Raises ValueError for names that are no parameters, and for other weights.
    """
    import torch
    from torch.func import functional_call

    allowed, away = frozenset(names), len(offloaded(loaded.model))
    unknown = allowed - {name for name, _ in loaded.model.named_parameters(remove_duplicate=False)}
    if unknown:
        raise ValueError(f"{min(unknown)} is no parameter of {type(loaded.model).__name__}")

    def call(weights: dict[str, Tensor], batch: Batch) -> Tensor:
        if others := weights.keys() - allowed:
            raise ValueError(f"{min(others)} is not among the {len(allowed)} weights of this caller")
        if away and torch._C._functorch.peek_interpreter_stack() is not None:  # pyright: ignore[reportAttributeAccessIssue]
            raise BadInput(
                f"model.device_map: {away} tensors are fetched when they are used, which forward-mode derivatives do "
                "not allow; use more GPUs or a smaller model"
            )
        with autocasting(loaded.device.type, loaded.autocast):
            return functional_call(loaded.model, weights, (), model_inputs(batch)).logits

    return call


def label_caller(loaded: LoadedModel, names: Iterable[str]) -> Callable[[dict[str, Tensor], Batch], Tensor]:
    """`functional_caller` that unembeds only what a loss reads: logits [n, vocab] at the n label positions.

    The unembedding is a fifth of a small model, and half of an instruction row is prompt.
    """
    call, head = functional_caller(loaded, names), loaded.model.get_output_embeddings()

    def call_at_labels(weights: dict[str, Tensor], batch: Batch) -> Tensor:
        from foretune.tasks.numerics.losses import label_positions

        positions = label_positions(batch.labels)
        handle = head.register_forward_pre_hook(lambda module, args: (args[0][positions], *args[1:]))  # pyright: ignore[reportOptionalMemberAccess]
        try:
            return call(weights, batch)
        finally:
            handle.remove()

    return call_at_labels


def model_inputs(batch: Batch) -> dict[str, Any]:
    """A batch as the keyword arguments of a transformers model."""
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
