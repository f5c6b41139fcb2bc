"""How far the losses predicted along a path may be trusted, and the words and the signal for it.

A point is trusted while no point up to it parts from its evaluated loss by more than the tolerance. A path that has
parted may be within tolerance again at its end: the end is then as good as it was measured to be, the way is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foretune.tasks.engine.signals import Signal

Point = Mapping[str, Any]  # step, predicted_loss, evaluated_loss (None or NaN where nobody evaluated)

EARLIER = "an earlier run"
"""Whose path a prediction went along, when not its own."""


@dataclass(frozen=True)
class Trust:
    """Predicted against evaluated loss along one path, in nats per token."""

    steps: int  # of the run
    trusted_steps: int  # the last step before the first that parts
    tolerance: float
    end_error: float  # at the last evaluated point
    parted_at: int | None = None  # the first step that parts
    parted_by: float = 0.0  # there

    @property
    def whole(self) -> bool:
        return self.parted_at is None

    @property
    def at_the_end(self) -> bool:
        return self.end_error <= self.tolerance

    @property
    def words(self) -> str:
        """As people read it; `whole run` when nothing parts."""
        if self.parted_at is None:
            return "whole run"
        parted = f"parted by {self.parted_by:.2f} nats at step {self.parted_at} of {self.steps}"
        if self.at_the_end:
            return f"{parted}, within tolerance again at the end: error {self.end_error:.2g}"
        if self.parted_at == self.steps:
            return f"{up_to_step(self.trusted_steps, self.steps)}; {parted}"
        return f"{up_to_step(self.trusted_steps, self.steps)}; {parted}, by {self.end_error:.2f} at the end"


def trust_of(points: Sequence[Point], tolerance: float) -> Trust:
    """Raises ValueError when no point was evaluated."""
    known = [p for p in points if p["evaluated_loss"] is not None and p["evaluated_loss"] == p["evaluated_loss"]]
    if not known:
        raise ValueError("a path without an evaluated point can be trusted nowhere")
    errors = {p["step"]: abs(p["predicted_loss"] - p["evaluated_loss"]) for p in known}
    parted = next((step for step, error in errors.items() if not error <= tolerance), None)
    trusted = max((step for step in errors if parted is None or step < parted), default=0)
    last = known[-1]["step"]
    return Trust(points[-1]["step"], trusted, tolerance, errors[last], parted, errors.get(parted, 0.0))


def up_to_step(trusted: int, steps: int) -> str:
    """`trusted` of a run's `steps`, as people read it."""
    if trusted == steps:
        return "whole run"
    return f"up to step {trusted} of {steps}" if trusted else f"at none of the {steps} steps"


def horizon_signal(trust: Trust, path_of: str) -> dict[str, Any] | None:
    """`beyond_horizon`: a note where the end is within tolerance again, else a warning; None for a trusted path."""
    if trust.parted_at is None:
        return None
    remedy = "leave prediction.along out" if path_of == EARLIER else "simulate a shorter run"
    advice = (
        f"prediction and evaluation {trust.words}; read the way there as a direction"
        if trust.at_the_end
        else f"the prediction is trusted {trust.words}; read the end of the path as a direction, or {remedy}"
    )
    severity = "info" if trust.at_the_end else "warn"
    return Signal("beyond_horizon", severity, trust.parted_at, trust.steps, advice).stored()
