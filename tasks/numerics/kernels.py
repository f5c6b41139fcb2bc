"""Attention kernels that autograd can differentiate twice, and forward."""

from __future__ import annotations

from contextlib import AbstractContextManager

from torch.nn.attention import SDPBackend, sdpa_kernel


def differentiable_attention() -> AbstractContextManager[object]:
    """Within it, scaled dot-product attention runs its plain kernel.

    The fused ones have no forward-mode and no second derivative, and their backward pass depends on the batch
    size. Eager attention needs nothing of this.
    """
    return sdpa_kernel(SDPBackend.MATH)
