"""Many runs replayed side by side over one gradient field: every batch gradient is read once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from foretune.tasks.numerics.factored import Gradient, dense
from foretune.tasks.numerics.optimizers import (
    OptimizerSettings,
    OptimizerState,
    advance,
    clip_global_norm,
    initial_state,
)
from foretune.tasks.numerics.products import Multiplicand, across, along
from foretune.tasks.numerics.replay import Adapter, BatchGradient, FullAdapter, LoraAdapter
from foretune.tasks.numerics.vectors import Vector


@dataclass(frozen=True)
class Member:
    """One run of a sweep."""

    adapter: Adapter
    settings: OptimizerSettings
    rates: Sequence[float]  # one learning rate per step
    snapshots: Collection[int] = ()  # step counts whose merged delta is wanted
    shifts: Sequence[Mapping[int, float]] = ()  # of each step {point: weight} of the gradient shift; none: no shift


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


NamedGradient = Callable[[int, str], Gradient]  # (point, name) -> [out, in]


@torch.no_grad()
def sweep(
    gradient: BatchGradient, names: Sequence[str], members: Sequence[Member], shift: NamedGradient | None = None
) -> list[Swept]:
    """Replay every member over `gradient(step, name)` [out, in], as `replay` would each alone.

    To that of a member with `shifts` the weighted points of `shift(point, name)` are added. A member may adapt fewer
    modules than `names`, and take fewer steps than the longest. One whose gradient or weights are no longer finite
    stops there, and `fault` gives the reason.
    """
    running = [_Running(member, Swept(member.adapter)) for member in members]
    for step in range(max((len(member.rates) for member in members), default=0)):
        active = [run for run in running if run.swept.fault is None and step < len(run.member.rates)]
        _read_gradients(gradient, names, step, active, shift)
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

    def shift_at(self, step: int) -> Mapping[int, float]:
        return self.member.shifts[step] if self.member.shifts else {}

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
    gradient: BatchGradient,
    names: Sequence[str],
    step: int,
    active: Sequence[_Running],
    shift: NamedGradient | None,
) -> None:
    """Fill every active member's gradient: the batch's, and the points of the shift by their weights."""
    points = {run: run.shift_at(step) for run in active} if shift else {}
    wanted = sorted({point for weights in points.values() for point in weights})
    for name in names:
        members = [run for run in active if name in run.modules]
        if not members:
            continue
        _fill(gradient(step, name), name, dict.fromkeys(members, 1.0), fresh=True)
        for point in wanted:
            shifted = {run: points[run][point] for run in members if points[run].get(point)}
            if shift and shifted:
                _fill(shift(point, name).float(), name, shifted, fresh=False)


def _fill(field: Multiplicand, name: str, weights: Mapping[_Running, float], fresh: bool) -> None:
    """Set (`fresh`) or add weight x `field` [out, in]; the LoRA factors of all members share two products."""
    lora = [run for run in weights if isinstance(run.member.adapter, LoraAdapter)]
    for run, weight in weights.items():
        if run in lora:
            continue
        if fresh:
            run.gradients[name].copy_(dense(field))
        else:
            run.gradients[name].add_(dense(field), alpha=weight)
    if lora:
        _factor_gradients(field, name, {run: weights[run] for run in lora}, fresh)


def _factor_gradients(field: Multiplicand, name: str, weights: Mapping[_Running, float], fresh: bool) -> None:
    """dL/dB = scale G A^T and dL/dA = scale B^T G, the factors of all members stacked."""
    down, up = f"{name}.lora_A", f"{name}.lora_B"
    ranks = [run.parameters[down].shape[0] for run in weights]
    to_up = across(field, torch.cat([run.parameters[down] for run in weights])).split(ranks, dim=1)
    to_down = along(field, torch.cat([run.parameters[up] for run in weights], dim=1)).split(ranks)
    for (run, weight), for_up, for_down in zip(weights.items(), to_up, to_down, strict=True):
        if fresh:
            torch.mul(for_up, run.scale, out=run.gradients[up])
            torch.mul(for_down, run.scale, out=run.gradients[down])
        else:
            run.gradients[up].add_(for_up, alpha=run.scale * weight)
            run.gradients[down].add_(for_down, alpha=run.scale * weight)
