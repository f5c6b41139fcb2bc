"""Where a replay stands as it is applied: its weight change and LoRA's factors, both bounded as the prediction is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from foretune.tasks.numerics.replay import Factors, Replay


@dataclass(frozen=True)
class Applied:
    """A snapshot of a virtual run."""

    steps: int
    delta: dict[str, Tensor]
    factors: Factors  # of that delta


def applied_at(replay: Replay, step: int, weights: Mapping[str, Tensor], max_relative_change: float) -> Applied:
    """The snapshot after `step` steps; `weights` are the base's, {name: [out, in]}."""
    from foretune.tasks.numerics.bounds import bounded

    found = bounded(replay.delta_at(step), dict(weights), max_relative_change)
    factors = {name: (a, b * found.shares[name]) for name, (a, b) in replay.factors_at(step).items()}
    return Applied(step, found.delta, factors)
