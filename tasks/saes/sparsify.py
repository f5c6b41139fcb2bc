"""SAEs of EleutherAI's sparsify, read natively: sae-lens transposes the decoder of current ones.

Format and arithmetic: sparsify's sparse_coder.py and fused_encoder.py. With x the activation,
    pre = relu(W_enc (x - b_dec) + b_enc)        and per token topk keeps the k largest entries,
    x_hat = acts W_dec + b_dec                   groupmax the largest of each of k equal groups.
Early versions (`signed`) rank by magnitude without the relu.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from foretune.storage.errors import BadInput
from foretune.tasks.loading.foreign import read_json, reading

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class SparsifySae:
    """One sparse coder; float32."""

    W_enc: Tensor  # [d_sae, d_in]
    b_enc: Tensor  # [d_sae]
    W_dec: Tensor  # [d_sae, d_in]
    b_dec: Tensor  # [d_in]
    k: int
    activation: str
    signed: bool

    def encode(self, x: Tensor) -> Tensor:
        """Activations [*, d_sae] of inputs [*, d_in]."""
        import torch

        pre = torch.nn.functional.linear(x - self.b_dec, self.W_enc, self.b_enc)
        if not self.signed:
            pre = pre.relu()
        if self.activation == "groupmax":
            groups = pre.unflatten(-1, (self.k, -1))
            values, indices = groups.max(dim=-1, keepdim=True)
            return torch.zeros_like(groups).scatter(-1, indices, values).flatten(-2)
        indices = pre.abs().topk(self.k, dim=-1, sorted=False).indices
        return torch.zeros_like(pre).scatter(-1, indices, pre.gather(-1, indices))

    def decode(self, acts: Tensor) -> Tensor:
        """Reconstructions [*, d_in] of activations [*, d_sae]."""
        return acts @ self.W_dec + self.b_dec


def load_sparsify(folder: Path, device: torch.device) -> SparsifySae:
    """Read cfg.json and sae.safetensors. Raises BadInput for another activation or missing tensors."""
    import torch
    from safetensors.torch import load_file

    config = read_json(folder / "cfg.json")
    activation = config.get("activation", "topk")
    if activation not in ("topk", "groupmax"):
        raise BadInput(f"sae {folder}: activation {activation} is unknown; topk and groupmax are supported")
    with reading(f"sae {folder}: sae.safetensors is no sparsify SAE and"):
        stored = load_file(folder / "sae.safetensors", device=str(device))
        tensors = {
            name: stored[name].to(torch.float32) for name in ("encoder.weight", "encoder.bias", "W_dec", "b_dec")
        }
    return SparsifySae(
        tensors["encoder.weight"],
        tensors["encoder.bias"],
        tensors["W_dec"],
        tensors["b_dec"],
        int(config.get("k", 32)),
        activation,
        bool(config.get("signed", False)),
    )
