"""Gradients in factors, as files hold them: what is exact in A0's row space, and two thin factors of the rest.

What is exact is stored as G A0^T; A0 is drawn again from the seed, so that a file holds no part of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from foretune.storage.contents import Artifact
from foretune.tasks.loading import AdapterSettings, lora_init
from foretune.tasks.numerics.ranks import SHIFT_RANKS, SUM_RANKS, factored_numbers, sketch_numbers

if TYPE_CHECKING:
    from torch import Tensor

    from foretune.tasks.loading import LoadedModel
    from foretune.tasks.numerics.factored import Factored, Gradient
    from foretune.tasks.numerics.sketch import SketchSum

GRADIENTS = "gradients.safetensors"
EXACT, LEFT, RIGHT = ".exact", ".left", ".right"
RECORD = "factors"
"""In the JSON beside a file of gradients: what says that they are in factors, and of which A0."""


class FactorSettings(BaseModel, frozen=True):
    """How a field is stored in factors."""

    r: int  # of the adapter that A0 is of
    seed: int
    rank: int  # beside what is exact

    def numbers(self, outputs: int, inputs: int) -> int:
        """Of a block's gradient in weights that have so many outputs and inputs together."""
        return factored_numbers(outputs, inputs, self.r, self.rank)

    def mean_numbers(self, outputs: int, inputs: int) -> int:
        """Of the mean over blocks."""
        return factored_numbers(outputs, inputs, self.r, SUM_RANKS * self.rank)

    def shift_numbers(self, outputs: int, inputs: int) -> int:
        """Of its shift along a path."""
        return factored_numbers(outputs, inputs, self.r, SHIFT_RANKS * self.rank)

    def sketch_numbers(self, outputs: int, inputs: int) -> int:
        """Held while gradients are measured."""
        return sketch_numbers(outputs, inputs, self.r, self.rank)


@dataclass(frozen=True)
class Starts:
    """A0 of every weight, and its pseudo-inverse."""

    a: Mapping[str, Tensor]  # [r, in]
    device: Any
    _lifts: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def lift(self, name: str) -> Tensor:
        if name not in self._lifts:
            from foretune.tasks.numerics.sketch import lift_of

            self._lifts[name] = lift_of(self.a[name])
        return self._lifts[name]


def record_of(settings: FactorSettings, dtype: Any, errors: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What RECORD holds; `dtype` is the model's, to which peft rounds A0."""
    told = {name: [error.whole, error.along] for name, error in (errors or {}).items()}
    return {**settings.model_dump(), "dtype": str(dtype).removeprefix("torch."), **({"errors": told} if told else {})}


def settings_of(record: Mapping[str, Any]) -> FactorSettings:
    return FactorSettings(**{name: record[name] for name in FactorSettings.model_fields})


@functools.lru_cache(maxsize=2)
def _drawn(r: int, seed: int, dtype: str, shapes: tuple[tuple[str, int, int], ...], device: str) -> Starts:
    import torch

    sizes = {name: (outputs, inputs) for name, outputs, inputs in shapes}
    a = lora_init(sizes, AdapterSettings(r=r), seed, getattr(torch, dtype))
    return Starts({name: each.to(device) for name, each in a.items()}, device)


def starts_of(record: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], device: Any) -> Starts:
    """`shapes` of all measured weights, in the model's order."""
    listed = tuple((name, *shape) for name, shape in shapes.items())
    return _drawn(record["r"], record["seed"], record["dtype"], listed, str(device))


def sketch_sum(
    loaded: LoadedModel, weights: Mapping[str, Tensor], dpo_beta: float | None, settings: FactorSettings
) -> SketchSum:
    """Sums over the weights that an adapter moves, without their gradients in memory."""
    from foretune.tasks.numerics.objectives import Objective
    from foretune.tasks.numerics.sketch import SketchSum

    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    starts = starts_of(record_of(settings, loaded.dtype), shapes, loaded.device)
    modules = {name: loaded.model.get_submodule(name.removesuffix(".weight")) for name in weights}
    outputs = {name: shape[0] for name, shape in shapes.items()}
    return SketchSum(Objective(dpo_beta), modules, starts.a, outputs, settings.rank, settings.seed)


def gradient_sum(
    loaded: LoadedModel, weights: dict[str, Tensor], dpo_beta: float | None, settings: FactorSettings | None
) -> Any:
    """A `GradientSum` over these weights, or with `settings` a `SketchSum`."""
    from foretune.tasks.numerics.gradients import GradientSum
    from foretune.tasks.numerics.objectives import Objective

    if settings is None:
        return GradientSum(Objective(dpo_beta), weights)
    return sketch_sum(loaded, weights, dpo_beta, settings)


def value_gradients(
    loaded: LoadedModel,
    weights: dict[str, Tensor],
    values: Iterable[Callable[[dict[str, Tensor]], Tensor]],
    settings: FactorSettings | None,
) -> dict[str, Gradient]:
    """{name: [out, in]} of the sum of scalar functions of the weights, in factors with `settings`."""
    from foretune.tasks.numerics import gradients

    if settings is None:
        return dict(gradients.value_gradients(weights, values))
    total = sketch_sum(loaded, weights, None, settings)
    for value in values:
        total.add_value(value)
    return dict(total.sums)


def recorded(settings: FactorSettings | None, dtype: Any) -> dict[str, Any]:
    """What the JSON beside a file of gradients has of these settings."""
    return {} if settings is None else {RECORD: record_of(settings, dtype)}


def write_gradients(draft: Any, file: str, gradients: Mapping[str, Gradient], dtype: Any = None) -> None:
    """Tensors as they are, gradients in factors as three of them."""
    from foretune.tasks.numerics.factored import Factored

    tensors = {}
    for name, gradient in gradients.items():
        if isinstance(gradient, Factored):
            parts = {EXACT: gradient.exact, LEFT: gradient.left, RIGHT: gradient.right}
        else:
            parts = {"": gradient}
        tensors |= {name + part: tensor if dtype is None else tensor.to(dtype) for part, tensor in parts.items()}
    draft.write_tensors(file, tensors)


class GradientFile:
    """One file of gradients, read one by one; `record` is what the JSON beside it has under RECORD, None for whole
    gradients."""

    def __init__(self, artifact: Artifact, file: str, record: Mapping[str, Any] | None, modules: list[str]) -> None:
        self._file, self._record, self._modules = artifact.read_tensors(file), record, modules

    def shape(self, name: str) -> tuple[int, ...]:
        if self._record is None:
            return self._file.shape(name)
        outputs, inputs = (self._file.shape(name + part) for part in (EXACT, RIGHT))
        return outputs[0], inputs[1]

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: self.shape(name) for name in self._modules}

    def read(self, name: str, device: Any = "cpu") -> Gradient:
        """[out, in] in the stored dtype."""
        if self._record is None:
            return self._file.tensor(name).to(device)
        return self._factored(name, device, starts_of(self._record, self.shapes, device))

    def _factored(self, name: str, device: Any, starts: Starts) -> Factored:
        from foretune.tasks.numerics.factored import Factored

        exact, left, right = (self._file.tensor(name + part).to(device) for part in (EXACT, LEFT, RIGHT))
        return Factored(exact, starts.lift(name), left, right)


def mean_gradients(artifact: Artifact) -> dict[str, Gradient]:
    """{name: [out, in]} of an artefact with one mean gradient, and the tensors that lie beside it."""
    record = artifact.json("target.json" if "target.json" in artifact.names() else "counts.json")
    if RECORD not in record:
        return dict(artifact.tensors(GRADIENTS))
    file = GradientFile(artifact, GRADIENTS, record[RECORD], record["modules"])
    return {name: file.read(name) for name in record["modules"]}
