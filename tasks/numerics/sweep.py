"""Many runs replayed side by side over one gradient field: every batch gradient is read once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from foretune.tasks.numerics.optimizers import (
    OptimizerSettings,
    OptimizerState,
    advance,
    clip_global_norm,
    initial_state,
)
from foretune.tasks.numerics.replay import Adapter, FullAdapter, LoraAdapter
from foretune.tasks.numerics.vectors import Vector


@dataclass(frozen=True)
class Member:
    """One run of a sweep."""

    adapter: Adapter
    settings: OptimizerSettings
    rates: Sequence[float]  # one learning rate per step
    snapshots: Collection[int] = ()  # step counts whose merged delta is wanted


@dataclass
class Swept:
    """How far one run came: all of its steps, or those before its fault."""

    adapter: Adapter
    snapshots: dict[int, Vector] = field(default_factory=dict)  # steps taken -> parameters at that moment
    distances: list[float] = field(default_factory=list)  # norm of the merged delta after every step
    fault: str | None = None

    def delta_at(self, step: int) -> Vector:
        """Merged weight change {name: [out, in]} once `step` steps are taken; one of the member's `snapshots`."""
        return self.adapter.delta(self.snapshots[step])


@torch.no_grad()
def sweep(gradient: Callable[[int, str], Tensor], names: Sequence[str], members: Sequence[Member]) -> list[Swept]:
    """Replay every member over `gradient(step, name)` [out, in], as `replay` would each alone.

    A member may adapt fewer modules than `names`, and take fewer steps than the longest. One whose gradient or
    weights are no longer finite stops there, and `fault` gives the reason.
    """
    running = [_Running(member, Swept(member.adapter)) for member in members]
    for step in range(max((len(member.rates) for member in members), default=0)):
        active = [run for run in running if run.swept.fault is None and step < len(run.member.rates)]
        _read_gradients(gradient, names, step, active)
        for run in active:
            run.step(step)
    return [run.swept for run in running]


class _Running:
    """One member being replayed. Its parameters, and their gradients, are views of one vector each: the optimizer's
    arithmetic is then a dozen operations a step, whatever the number of modules."""

    def __init__(self, member: Member, swept: Swept) -> None:
        self.member, self.swept = member, swept
        self.scale = member.adapter.scale if isinstance(member.adapter, LoraAdapter) else 1.0
        started = member.adapter.start()
        self.flat = {"": torch.cat([parameter.flatten() for parameter in started.values()])}
        self.parameters = _views(self.flat[""], started)
        self.gradient = torch.zeros_like(self.flat[""])
        self.gradients = _views(self.gradient, started)
        self.modules = [name.removesuffix(".lora_A") for name in started if not name.endswith(".lora_B")]
        if member.settings.weight_decay and member.adapter.decay_origin is not None:
            raise ValueError("weight decay of a full fine-tune acts on the weights themselves: replay it alone")
        self.state: OptimizerState = initial_state(member.settings, self.flat)

    def step(self, step: int) -> None:
        settings = self.member.settings
        gradients, norm = clip_global_norm({"": self.gradient}, settings.max_grad_norm)
        if not norm < float("inf"):
            self.swept.fault = f"gradient norm {norm} at step {step + 1}"
            return
        self.state = advance(settings, self.state, self.flat, gradients, self.member.rates[step])
        distance = self.distance()
        if not distance < float("inf"):
            self.swept.fault = f"weights beyond all numbers after step {step + 1}"
            return
        self.swept.distances.append(distance)
        if step + 1 in self.member.snapshots:
            self.swept.snapshots[step + 1] = {name: view.clone() for name, view in self.parameters.items()}

    def distance(self) -> float:
        """|delta|; of a LoRA product by its r x r Gram matrices, without forming it."""
        if isinstance(self.member.adapter, FullAdapter):
            return float(torch.linalg.vector_norm(self.flat[""]))
        downs = _grams([self.parameters[f"{name}.lora_A"] for name in self.modules])
        ups = _grams([self.parameters[f"{name}.lora_B"].T for name in self.modules])
        return abs(self.scale) * float((downs * ups).sum().clamp_min(0).sqrt())


def _views(flat: Tensor, like: Vector) -> Vector:
    """Parts of `flat` in the shapes of `like`, in its order."""
    parts = flat.split([tensor.numel() for tensor in like.values()])
    return {name: part.view(tensor.shape) for (name, tensor), part in zip(like.items(), parts, strict=True)}


def _grams(factors: list[Tensor]) -> Tensor:
    """[n, r, r] F F^T of n factors [r, any], those of one shape in one product."""
    shapes: dict[torch.Size, list[int]] = {}
    for place, factor in enumerate(factors):
        shapes.setdefault(factor.shape, []).append(place)
    rank = factors[0].shape[0]
    grams = factors[0].new_empty(len(factors), rank, rank)
    for places in shapes.values():
        stacked = torch.stack([factors[place] for place in places])
        grams[places] = stacked @ stacked.mT
    return grams


def _read_gradients(
    gradient: Callable[[int, str], Tensor], names: Sequence[str], step: int, active: Sequence[_Running]
) -> None:
    """Fill every active member's gradient; the LoRA factors of all members share two products a module."""
    for name in names:
        members = [run for run in active if name in run.modules]
        if not members:
            continue
        batch = gradient(step, name)
        lora = [run for run in members if isinstance(run.member.adapter, LoraAdapter)]
        for run in members:
            if run not in lora:
                run.gradients[name].copy_(batch)
        if lora:
            _factor_gradients(batch, name, lora)


def _factor_gradients(batch: Tensor, name: str, members: Sequence[_Running]) -> None:
    """dL/dB = scale G A^T and dL/dA = scale B^T G, the factors of all members stacked."""
    down, up = f"{name}.lora_A", f"{name}.lora_B"
    ranks = [run.parameters[down].shape[0] for run in members]
    to_up = (batch @ torch.cat([run.parameters[down] for run in members]).T).split(ranks, dim=1)
    to_down = (torch.cat([run.parameters[up] for run in members], dim=1).T @ batch).split(ranks)
    for run, for_up, for_down in zip(members, to_up, to_down, strict=True):
        torch.mul(for_up, run.scale, out=run.gradients[up])
        torch.mul(for_down, run.scale, out=run.gradients[down])
