"""AdamW and SGD as plain recursions over a dictionary of tensors, and clipping by the global norm."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

OPTIMIZERS = ("adamw", "sgd")

# torch.nn.utils.clip_grad_norm_ divides by norm + 1e-6; the same number keeps clipped steps equal to its own.
CLIP_EPS = 1e-6


@dataclass(frozen=True)
class OptimizerSettings:
    """What `torch.optim.AdamW` or `torch.optim.SGD` (dampening 0) would be constructed with, but for the rate."""

    name: str = "adamw"  # adamw | sgd
    weight_decay: float = 0.0  # decoupled for AdamW, added to the gradient for SGD
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.0
    nesterov: bool = False
    max_grad_norm: float | None = 1.0  # None or 0: no clipping

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise ValueError(f"optimizer {self.name!r} is unknown: use one of {', '.join(OPTIMIZERS)}")
        if self.nesterov and (self.name != "sgd" or self.momentum <= 0):
            raise ValueError("nesterov needs name='sgd' and a positive momentum")


@dataclass(frozen=True)
class OptimizerState:
    """Moments by parameter name; empty for an optimiser that keeps none."""

    steps: int  # steps taken so far
    first: dict[str, Tensor]  # AdamW: mean of gradients; SGD: momentum buffer
    second: dict[str, Tensor]  # AdamW: mean of squared gradients

    def clone(self) -> OptimizerState:
        first = {name: tensor.clone() for name, tensor in self.first.items()}
        second = {name: tensor.clone() for name, tensor in self.second.items()}
        return OptimizerState(self.steps, first, second)


def initial_state(settings: OptimizerSettings, parameters: Mapping[str, Tensor]) -> OptimizerState:
    """The state before the first step: zero moments, in the parameters' shapes and dtypes."""
    adamw = settings.name == "adamw"
    first = {n: torch.zeros_like(p) for n, p in parameters.items()} if adamw or settings.momentum else {}
    second = {n: torch.zeros_like(p) for n, p in parameters.items()} if adamw else {}
    return OptimizerState(0, first, second)


@torch.no_grad()
def advance(
    settings: OptimizerSettings,
    state: OptimizerState,
    parameters: dict[str, Tensor],
    gradients: Mapping[str, Tensor],
    learning_rate: float,
    origin: Mapping[str, Tensor] | None = None,
    undecayed: Collection[str] = (),
) -> OptimizerState:
    """One optimiser step: moves `parameters` and the moments in place.

    Returns the state with its count raised.

    `origin` is for parameters that are stored as differences: weight decay then acts on origin + parameter,
    which is the weight itself. Parameters named in `undecayed` have none. AdamW is Loshchilov & Hutter, arXiv
    1711.05101, algorithm 2 (decay scaled by the learning rate); SGD is Sutskever et al. 2013 in torch's form (the
    rate multiplies the buffer).
    """
    step = _adamw_step if settings.name == "adamw" else _sgd_step
    for name, parameter in parameters.items():
        decay = 0.0 if name in undecayed else settings.weight_decay
        weight = origin[name] + parameter if decay and origin is not None else parameter
        parameter.add_(step(settings, state, name, weight, gradients[name], learning_rate, decay))
    return OptimizerState(state.steps + 1, state.first, state.second)


def _adamw_step(
    settings: OptimizerSettings,
    state: OptimizerState,
    name: str,
    weight: Tensor,
    gradient: Tensor,
    rate: float,
    decay: float,
) -> Tensor:
    beta1, beta2 = settings.betas
    count = state.steps + 1
    first = state.first[name].lerp_(gradient, 1 - beta1)
    second = state.second[name].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    denominator = second.sqrt().div_((1 - beta2**count) ** 0.5).add_(settings.eps)
    change = first.div(denominator).mul_(-rate / (1 - beta1**count))
    return change.sub_(weight, alpha=rate * decay) if decay else change


def _sgd_step(
    settings: OptimizerSettings,
    state: OptimizerState,
    name: str,
    weight: Tensor,
    gradient: Tensor,
    rate: float,
    decay: float,
) -> Tensor:
    if decay:
        gradient = gradient.add(weight, alpha=decay)
    if settings.momentum:
        buffer = state.first[name].mul_(settings.momentum).add_(gradient)
        gradient = gradient.add(buffer, alpha=settings.momentum) if settings.nesterov else buffer
    return gradient.mul(-rate)


@torch.no_grad()
def clip_global_norm(gradients: Mapping[str, Tensor], max_norm: float | None) -> tuple[dict[str, Tensor], float]:
    """Gradients scaled so that their global norm is at most `max_norm`, and the norm before scaling.

    Equal to `torch.nn.utils.clip_grad_norm_`. None or 0 leaves the gradients alone.
    """
    norms = [torch.linalg.vector_norm(gradient) for gradient in gradients.values()]
    norm = float(torch.linalg.vector_norm(torch.stack(norms)))
    factor = max_norm / (norm + CLIP_EPS) if max_norm else 1.0
    if factor >= 1.0:
        return dict(gradients), norm
    return {name: gradient * factor for name, gradient in gradients.items()}, norm
