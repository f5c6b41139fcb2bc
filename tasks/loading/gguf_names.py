"""Where a weight of a model folder stands in a GGUF file, and how its rows lie there: the reverse of transformers'
reading, by its own table of names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretune.storage.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor

STRUCTURED = {"bloom", "gpt-oss", "lfm2", "mamba", "minimax-m2", "qwen2moe", "qwen3moe", "t5", "t5encoder"}
"""Architectures whose tensors are no renamed ones: experts in one tensor, interleaved heads, logarithms."""
ROTATED = re.compile(r"\.attn_([qk])\.(weight|bias)$")
SHIFTED = {"gemma2", "gemma3", "nemotron"}  # their norms are stored as 1 + w
TURNED = re.compile(r"\.(attn_qkv|attn_output|ffn_up|ffn_down)\.weight$")  # GPT-2's, [in, out] in its own folders


@dataclass(frozen=True)
class GgufNames:
    """Of one model: GGUF's names to those of its folder, and the architecture that files call it by."""

    architecture: str
    heads: int
    kv_heads: int
    folder_names: dict[str, str]

    def stored(self, name: str, weight: Tensor) -> Tensor:
        """A weight of the folder as it lies in the file under this name."""
        rotated = ROTATED.search(name)
        if self.architecture == "llama" and rotated:
            # llama.cpp pairs rotary dimensions (0, 1), Hugging Face (0, d/2).
            heads = self.heads if rotated[1] == "q" else self.kv_heads
            parts = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
            return parts.swapaxes(1, 2).reshape(weight.shape)
        if self.architecture in SHIFTED and name.endswith("norm.weight"):
            return weight.float() + 1
        if self.architecture == "gpt2" and TURNED.search(name):
            return weight.T
        return weight


def names_of(folder: Path, architecture: str) -> GgufNames:
    """The names of a model folder's weights in files of this architecture. BadInput for one that is written in another
    form than it is read in here."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    if architecture in STRUCTURED:
        raise BadInput(
            f"--gguf: no GGUF file of architecture {architecture} is written here; export a folder, and convert it "
            "with llama.cpp's convert_hf_to_gguf.py"
        )
    config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=config.to_dict())
    known = get_gguf_hf_weights_map(model, processor)
    heads = getattr(config, "num_attention_heads", 1)
    return GgufNames(architecture, heads, getattr(config, "num_key_value_heads", None) or heads, known)
