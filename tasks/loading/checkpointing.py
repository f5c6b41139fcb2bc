"""Activations computed again on the way back instead of kept: time for memory, gradients unchanged."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from foretune.tasks.loading.models import LoadedModel


@contextlib.contextmanager
def recomputed(loaded: LoadedModel, weights: dict[str, Tensor]) -> Iterator[None]:
    """Inside the block, decoder layers keep their input alone, where the request asked for it.

    `weights` {parameter name: tensor} are those that the loss is differentiated in: the second forward happens
    outside of `functional_call`, and must meet the same tensors as the first. The layers' dropout stays off.
    """
    if not loaded.gradient_checkpointing:
        yield
        return
    from torch.nn.utils.stateless import _reparametrize_module
    from transformers.modeling_layers import GradientCheckpointingLayer

    model = loaded.model
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    model.activation_checkpointing_enable({"use_reentrant": False})
    try:
        for layer in layers:
            layer.training = True  # of the layer alone: transformers asks for it; what is inside stays in eval mode
        with _reparametrize_module(model, weights):
            yield
    finally:
        for layer in layers:
            layer.training = False
        model.activation_checkpointing_disable()
