"""The optimiser's recursion advanced over measured gradients, without a model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foretune.tasks.numerics.factored import dense, thin
from foretune.tasks.numerics.optimizers import (
    OptimizerSettings,
    OptimizerState,
    advance,
    clip_global_norm,
    initial_state,
)
from foretune.tasks.numerics.products import Multiplicand, across, along

# gradient(step, name): full-weight gradient of the virtual batch at 0-based `step`, [out, in]
BatchGradient = Callable[[int, str], Multiplicand]

Factors = dict[str, tuple[Tensor, Tensor]]
"""A [r, in] and B [out, r] of every LoRA module, by weight name; empty where the weights themselves move."""


Delta = dict[str, Any]
"""{name: [out, in]} weight change, a tensor or in factors."""


@dataclass(frozen=True)
class LoraAdapter:
    """W = W0 + scale * B @ A with both factors moving: dL/dB = scale * G A^T, dL/dA = scale * B^T G.

    Starts at B = 0, so the first step moves B alone. Input dropout enters in expectation: it multiplies the
    adapter's input by a mask of mean one, so E[dL/dB] = scale * G A^T and E[dL/dA] = scale * B^T G, exactly
    at B = 0 (the output does not depend on the mask there) and to first order in B afterwards.
    """

    initial_a: Mapping[str, Tensor]  # weight name -> [r, in]
    scale: float  # alpha / r, or alpha / sqrt(r) for rslora
    outputs: Mapping[str, int]  # weight name -> out
    thin: bool = False  # whether weight changes stay in factors

    def start(self) -> dict[str, Tensor]:
        down = {_a(name): a.to(torch.float32, copy=True) for name, a in self.initial_a.items()}
        up = {
            _b(name): torch.zeros(self.outputs[name], a.shape[0], device=a.device) for name, a in self.initial_a.items()
        }
        return {**down, **up}

    def gradients(self, parameters: Mapping[str, Tensor], batch: BatchGradient, step: int) -> dict[str, Tensor]:
        gradients = {}
        for name in self.initial_a:
            gradient = batch(step, name)
            gradients[_b(name)] = across(gradient, parameters[_a(name)]).mul_(self.scale)
            gradients[_a(name)] = along(gradient, parameters[_b(name)]).mul_(self.scale)
        return gradients

    def delta(self, parameters: Mapping[str, Tensor]) -> Delta:
        moved = {name: (self.scale * parameters[_b(name)], parameters[_a(name)]) for name in self.initial_a}
        return {name: thin(b, a) if self.thin else b @ a for name, (b, a) in moved.items()}

    def factors(self, parameters: Mapping[str, Tensor]) -> Factors:
        return {name: (parameters[_a(name)], parameters[_b(name)]) for name in self.initial_a}

    @property
    def decay_origin(self) -> None:
        """None: what is stored are the factors themselves, so decay acts on them as they are."""
        return None

    @property
    def undecayed(self) -> frozenset[str]:
        """Decay acts on both factors."""
        return frozenset()


@dataclass(frozen=True)
class FullAdapter:
    """W = W0 + D: every weight moves with its own gradient. D is stored, so that small changes keep their digits."""

    weights: Mapping[str, Tensor]  # W0 by name, [out, in]; weight decay pulls W0 + D
    undecayed: frozenset[str] = frozenset()  # names that weight decay leaves alone

    def start(self) -> dict[str, Tensor]:
        return {name: torch.zeros_like(w, dtype=torch.float32) for name, w in self.weights.items()}

    def gradients(self, parameters: Mapping[str, Tensor], batch: BatchGradient, step: int) -> dict[str, Tensor]:
        return {name: dense(batch(step, name)) for name in parameters}

    def delta(self, parameters: Mapping[str, Tensor]) -> Delta:
        return {name: parameter.clone() for name, parameter in parameters.items()}

    def factors(self, parameters: Mapping[str, Tensor]) -> Factors:
        return {}

    @property
    def decay_origin(self) -> Mapping[str, Tensor]:
        return self.weights


Adapter = LoraAdapter | FullAdapter


@dataclass(frozen=True)
class ReplayState:
    """Everything the next segment needs; never modified by a replay that starts from it."""

    parameters: dict[str, Tensor]  # "<name>.lora_A" / "<name>.lora_B", or the weight differences
    optimizer: OptimizerState

    @property
    def step(self) -> int:
        """Optimiser steps taken so far."""
        return self.optimizer.steps


@dataclass(frozen=True)
class Replay:
    state: ReplayState  # after the last step
    snapshots: dict[int, dict[str, Tensor]]  # steps taken -> parameters at that moment
    clipped_steps: tuple[int, ...]  # 0-based steps whose gradient was scaled down
    adapter: Adapter

    @property
    def delta(self) -> Delta:
        """Merged weight change after the last step, {name: [out, in]}."""
        return self.adapter.delta(self.state.parameters)

    def delta_at(self, step: int) -> Delta:
        """Merged weight change once `step` steps are taken; `step` must be one of the snapshots."""
        return self.adapter.delta(self.snapshots[step])

    def factors_at(self, step: int) -> Factors:
        """LoRA's factors at a snapshot."""
        return self.adapter.factors(self.snapshots[step])


def initial_replay_state(adapter: Adapter, settings: OptimizerSettings) -> ReplayState:
    parameters = adapter.start()
    return ReplayState(parameters, initial_state(settings, parameters))


@torch.no_grad()
def replay(
    gradient: BatchGradient,
    adapter: Adapter,
    settings: OptimizerSettings,
    rates: Sequence[float],
    *,
    start: ReplayState | None = None,
    stop: int | None = None,
    snapshots: Collection[int] = (),
) -> Replay:
    """Advances the optimiser from `start` (default: the untouched adapter) until `stop` steps are taken.

    `rates` covers the whole run, one learning rate per step, so a run may be cut into segments that are
    chained through `start`. `snapshots` lists the step counts at which the parameters are kept (0 is the
    beginning).
    Raises ValueError when stop lies outside the schedule or a gradient is not finite.
    """
    state = start or initial_replay_state(adapter, settings)
    stop = len(rates) if stop is None else stop
    if not state.step <= stop <= len(rates):
        raise ValueError(f"stop={stop} must lie between step {state.step} and {len(rates)}, the schedule's end")
    parameters, optimizer, origin = _copy(state.parameters), state.optimizer.clone(), adapter.decay_origin
    kept = {state.step: _copy(parameters)} if state.step in snapshots else {}
    clipped = []
    for step in range(state.step, stop):
        raw = adapter.gradients(parameters, gradient, step)
        gradients, norm = clip_global_norm(raw, settings.max_grad_norm)
        if not norm < float("inf"):
            raise ValueError(f"gradient norm {norm} at virtual step {step}: lower the learning rate, add anchors")
        optimizer = advance(settings, optimizer, parameters, gradients, rates[step], origin, adapter.undecayed)
        if settings.max_grad_norm and norm > settings.max_grad_norm:
            clipped.append(step)
        if step + 1 in snapshots:
            kept[step + 1] = _copy(parameters)
    end = ReplayState(parameters, optimizer)
    return Replay(end, kept, tuple(clipped), adapter)


def _copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _a(name: str) -> str:
    return f"{name}.lora_A"


def _b(name: str) -> str:
    return f"{name}.lora_B"
