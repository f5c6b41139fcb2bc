"""Tensors that two open models have in common are one memory: nothing may write into the weights of an open model, as
none of the passes does (`at_weights` puts other tensors in their place)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def share_equal(opened: PreTrainedModel, other: PreTrainedModel) -> None:
    """Let tensors that are bit by bit those of a model that is open already be its memory: a LoRA's checkpoint differs
    from its base in a few. What differs is copied, so that the mapped file can go."""
    import torch

    if getattr(opened, "hf_device_map", None) or getattr(other, "hf_device_map", None):
        return
    known, own, shared = dict(other.named_parameters()), [], 0
    for name, parameter in opened.named_parameters():
        if name in known and _same_bits(parameter, known[name]):
            parameter.data, shared = known[name].data, shared + 1
        else:
            own.append(parameter)
    for parameter in own if shared else ():
        if parameter.device.type == "cpu":  # else it has left the file already
            parameter.data = parameter.data.clone(memory_format=torch.preserve_format)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """0 and -0 are equal, but no digest takes one for the other."""
    import torch

    alike = (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device) and a.is_contiguous() and b.is_contiguous()
    return alike and torch.equal(a.detach().view(-1).view(torch.uint8), b.detach().view(-1).view(torch.uint8))
