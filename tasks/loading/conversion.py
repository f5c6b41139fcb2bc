"""GGUF files as model folders."""

from __future__ import annotations

import importlib.metadata
import json
from functools import partial
from pathlib import Path
from typing import Any, Literal

from foretune.storage.copies import cached_copy
from foretune.storage.digests import digest_of, file_digest
from foretune.tasks.loading.foreign import reading
from foretune.tasks.loading.gguf_header import check_gguf
from foretune.tasks.loading.models import quiet_transformers, refuse_loading_info
from foretune.tasks.loading.older_readers import name_for_older_readers


def convert_gguf(gguf: Path, out: Path, dtype: Literal["float32", "bfloat16", "float16"] = "float32") -> None:
    """Write the model of a GGUF file as sharded safetensors in `dtype`, with config and tokenizer.

    The same file gives the same bytes, wherever it lies. Raises BadInput for a file that is no GGUF model
    which transformers can read.
    """
    check_gguf(gguf)
    quiet_transformers()
    model, tokenizer = _read(gguf, dtype)
    out.mkdir(parents=True, exist_ok=True)
    _unquantised(model).save_pretrained(out)
    tokenizer.save_pretrained(out)
    name_for_older_readers(out)


SHAPES = "shapes.json"
"""{name: shape} of the weights that a preview does not have."""


def gguf_preview(gguf: Path) -> Path:
    """Local folder of a GGUF file's tokenizer, chat template, configuration and shapes, as `convert_gguf` would write
    them; its tensors are not read.

    BadInput as for `convert_gguf`.
    """
    check_gguf(gguf, weights=False)
    versions = [importlib.metadata.version(library) for library in ("transformers", "tokenizers", "gguf")]
    identity = digest_of(["preview", file_digest(gguf), versions])
    return cached_copy(identity, gguf.stem, partial(_write_preview, gguf))


def gguf_shapes(folder: Path) -> dict[str, tuple[int, ...]] | None:
    """{name: shape} of the weights of such a folder; None of any other."""
    if not (folder / SHAPES).is_file():
        return None
    return {name: tuple(shape) for name, shape in json.loads((folder / SHAPES).read_text(encoding="utf-8")).items()}


def _write_preview(gguf: Path, out: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    quiet_transformers()
    where = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name, "local_files_only": True}
    with reading(f"model {gguf}: transformers cannot read this GGUF file, it", "give the model's folder"):
        config = AutoConfig.from_pretrained(**where)
        config.save_pretrained(out)
        AutoTokenizer.from_pretrained(**where).save_pretrained(out)
        (out / SHAPES).write_text(json.dumps(_shapes(config)), encoding="utf-8")
    name_for_older_readers(out)


def _shapes(config: Any) -> dict[str, list[int]]:
    """Of the tensors that a model of this configuration is saved as: tied ones once."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    tied = model.all_tied_weights_keys
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}


def _read(gguf: Path, dtype: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    with reading(f"model {gguf}: transformers cannot read this GGUF file, it", "give the model's folder"):
        model, info = AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
            **where, dtype=getattr(torch, dtype), output_loading_info=True, local_files_only=True
        )
        refuse_loading_info(gguf, type(model).__name__, info)
        return model, AutoTokenizer.from_pretrained(**where, local_files_only=True)


def _unquantised(model: Any) -> Any:
    """The same tensors in a model without memory of a quantised origin, which transformers would not save."""
    import torch

    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        plain = type(model)(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain
