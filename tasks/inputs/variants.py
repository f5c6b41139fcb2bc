"""Weights that a predicted run passes or might end at, as they are stored: LoRA's two factors, a file each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from foretune.storage.contents import Artifact
from foretune.tasks.inputs.adapter_factors import read_factors

if TYPE_CHECKING:
    from torch import Tensor

    from foretune.tasks.numerics.replay import Factors


Kind = Literal["waypoint", "order", "without", "control"]
"""Points on the way, other orders of the rows; ends without some rows, and without as many others."""


@dataclass(frozen=True)
class Variant:
    """Weights beside the predicted ones."""

    kind: Kind
    step: int  # steps taken
    seed: int  # of the order of the rows
    loss: float  # of the evaluated held-out rows: nats per label token, or per pair

    @property
    def file(self) -> str:
        return f"{self.kind}-{self.step:06d}-{self.seed}.safetensors"


def stored_variants(stored: Artifact) -> list[Variant]:
    """The waypoints, by their step, and then the other orders."""
    return [Variant(**each) for each in stored.json("variants.json")["variants"]]


def variant_factors(stored: Artifact, variant: Variant) -> Factors:
    """LoRA's factors there."""
    return read_factors(stored, variant.file)


def deltas(stored: Artifact, scale: float, device: Any) -> Iterator[tuple[Variant, dict[str, Tensor]]]:
    """Every variant with its weight change, one after the other."""
    for variant in stored_variants(stored):
        yield variant, merged(variant_factors(stored, variant), scale, device)


def merged(factors: Factors, scale: float, device: Any = "cpu") -> dict[str, Tensor]:
    """The weight change that LoRA's factors stand for, {name: [out, in]}; `scale` is alpha / r or its like."""
    return {name: scale * b.to(device) @ a.to(device) for name, (a, b) in factors.items()}
