"""GGUF files as model folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from foretune.storage.errors import BadInput
from foretune.tasks.loading.models import quiet_transformers

UNREADABLE = (ValueError, KeyError, IndexError, OSError, NotImplementedError)
"""What transformers and gguf raise for files that they cannot read."""


def convert_gguf(gguf: Path, out: Path, dtype: Literal["float32", "bfloat16", "float16"] = "float32") -> None:
    """Write the model of a GGUF file as sharded safetensors in `dtype`, with config and tokenizer.

    The same file gives the same bytes, wherever it lies. Raises BadInput for a file that is no GGUF model
    which transformers can read.
    """
    if not gguf.is_file():
        raise BadInput(f"model {gguf}: no such file; check the path")
    with open(gguf, "rb") as stream:
        if stream.read(4) != b"GGUF":
            raise BadInput(f"model {gguf}: not a GGUF file; copy it again")
    quiet_transformers()
    model, tokenizer = _read(gguf, dtype)
    out.mkdir(parents=True, exist_ok=True)
    _unquantised(model).save_pretrained(out)
    tokenizer.save_pretrained(out)


def _read(gguf: Path, dtype: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    try:
        model = AutoModelForCausalLM.from_pretrained(**where, dtype=getattr(torch, dtype))
        return model, AutoTokenizer.from_pretrained(**where)
    except Exception as error:
        # The tokenizers library raises bare Exceptions; what is none of the reader's own goes on.
        if type(error) is not Exception and not isinstance(error, UNREADABLE):
            raise
        reason = str(error).strip().split("\n")[0]
        raise BadInput(f"model {gguf}: transformers cannot read this GGUF file: {reason}") from None


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
