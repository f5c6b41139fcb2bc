"""Many runs replayed side by side over one gradient field: every batch gradient is read once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tasks.numerics.optimizers import OptimizerSettings, OptimizerState, advance, clip_global_norm, initial_state
from tasks.numerics.replay import Adapter, FullAdapter, LoraAdapter
from tasks.numerics.vectors import Vector


@dataclass(frozen=True)
class Member:
    """One run of a sweep."""

    adapter: Adapter
    settings: OptimizerSettings
    rates: Sequence[float]  # one learning rate per step
    kept: Collection[int] = ()  # step counts whose merged delta is wanted


@dataclass
class Swept:
    """Where one run came to; after a fault, the steps before it."""

    deltas: dict[int, Vector] = field(default_factory=dict)  # steps taken -> {name: [out, in]}
    distances: list[float] = field(default_factory=list)  # norm of the merged delta after every step
    fault: str | None = None


@torch.no_grad()
def sweep(gradient: Callable[[int, str], Tensor], names: Sequence[str], members: Sequence[Member]) -> list[Swept]:
    """Replay every member over `gradient(step, name)` [out, in], as `replay` would each alone.

    A member may adapt fewer modules than `names`, and take fewer steps than the longest. One whose gradient is no
    longer finite stops there, and says so.
    """
    running = [_Running(member, Swept()) for member in members]
    for step in range(max((len(member.rates) for member in members), default=0)):
        active = [run for run in running if run.wants(step)]
        gradients = _gradients(gradient, names, step, active)
        for run, own in zip(active, gradients, strict=True):
            run.step(step, own)
    return [run.swept for run in running]


class _Running:
    def __init__(self, member: Member, swept: Swept) -> None:
        self.member, self.swept = member, swept
        self.parameters = member.adapter.start()
        self.state: OptimizerState = initial_state(member.settings, self.parameters)
        self.moved = [name.removesuffix(".lora_A") for name in self.parameters if not name.endswith(".lora_B")]

    def wants(self, step: int) -> bool:
        return self.swept.fault is None and step < len(self.member.rates)

    def step(self, step: int, raw: Vector) -> None:
        member = self.member
        gradients, norm = clip_global_norm(raw, member.settings.max_grad_norm)
        if not norm < float("inf"):
            self.swept.fault = f"gradient norm {norm} at step {step + 1}"
            return
        origin = member.adapter.decay_origin
        self.state, _ = advance(member.settings, self.state, self.parameters, gradients, member.rates[step], origin)
        self.swept.distances.append(self.distance())
        if step + 1 in member.kept:
            self.swept.deltas[step + 1] = member.adapter.delta(self.parameters)

    def distance(self) -> float:
        """|delta|; of a LoRA product by its r x r Gram matrices, without forming it."""
        if isinstance(self.member.adapter, FullAdapter):
            squares = [p.square().sum() for p in self.parameters.values()]
            return float(torch.stack(squares).sum().sqrt())
        squares = []
        for name in self.moved:
            down, up = self.parameters[f"{name}.lora_A"], self.parameters[f"{name}.lora_B"]
            squares.append(((up.T @ up) * (down @ down.T)).sum())
        return abs(self.member.adapter.scale) * float(torch.stack(squares).sum().clamp_min(0).sqrt())


def _gradients(
    gradient: Callable[[int, str], Tensor], names: Sequence[str], step: int, active: Sequence[_Running]
) -> list[Vector]:
    """Every active member's gradient in its own coordinates; LoRA factors of all members share two products."""
    made: list[Vector] = [{} for _ in active]
    for name in names:
        members = [number for number, run in enumerate(active) if name in run.moved]
        if not members:
            continue
        batch = gradient(step, name)
        lora = [number for number in members if isinstance(active[number].member.adapter, LoraAdapter)]
        for number in set(members) - set(lora):
            made[number][name] = batch
        if lora:
            _of_factors(batch, name, [(active[number], made[number]) for number in lora])
    return [{key: own[key] for key in run.parameters} for run, own in zip(active, made, strict=True)]


def _of_factors(batch: Tensor, name: str, members: Sequence[tuple[_Running, Vector]]) -> None:
    """dL/dB = scale G A^T and dL/dA = scale B^T G, the factors of all members stacked."""
    downs = [run.parameters[f"{name}.lora_A"] for run, _ in members]
    ups = [run.parameters[f"{name}.lora_B"] for run, _ in members]
    ranks = [down.shape[0] for down in downs]
    to_up = (batch @ torch.cat(downs).T).split(ranks, dim=1)
    to_down = (torch.cat(ups, dim=1).T @ batch).split(ranks)
    for (run, own), up, down in zip(members, to_up, to_down, strict=True):
        scale = run.member.adapter.scale
        own[f"{name}.lora_B"], own[f"{name}.lora_A"] = up * scale, down * scale
