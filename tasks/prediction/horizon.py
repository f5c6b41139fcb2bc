"""The horizon: how far along a path the predicted losses may be trusted."""

from __future__ import annotations

from typing import Any

from foretune.tasks.inputs.trust import trust_of
from foretune.tasks.inputs.trust import up_to_step as trust_in_words

__all__ = ["first_divergence", "last_trusted", "path_summary", "trust_in_words", "trusted_steps"]


def first_divergence(points: list[dict[str, Any]], tolerance: float) -> int | None:
    """The first step where predicted and evaluated loss differ by more than `tolerance` nats; None without one."""
    return next((p["step"] for p in points if abs(p["predicted_loss"] - p["evaluated_loss"]) > tolerance), None)


def last_trusted(points: list[dict[str, Any]], tolerance: float) -> dict[str, Any] | None:
    """The last point before the first divergence; None where there is none."""
    horizon = first_divergence(points, tolerance)
    return next((p for p in reversed(points) if horizon is None or p["step"] < horizon), None)


def trusted_steps(points: list[dict[str, Any]], tolerance: float, reach: int = 0) -> int:
    """The last step that may be trusted: that of the last evaluation before the first divergence.

    `reach` is the step up to which there is another reason to trust the path, where little of it was evaluated.
    """
    horizon, last = first_divergence(points, tolerance), last_trusted(points, tolerance)
    evaluated = last["step"] if last else 0
    return evaluated if horizon is None else max(evaluated, min(reach, horizon - 1))


def path_summary(points: list[dict[str, Any]], tolerance: float) -> dict[str, Any]:
    """First and last losses, and the horizon: the first step where the prediction has diverged."""
    last, trust = points[-1], trust_of(points, tolerance)
    return {
        "heldout_loss_base": points[0]["evaluated_loss"],
        "heldout_loss_predicted": last["predicted_loss"],
        "heldout_loss_evaluated": last["evaluated_loss"],
        "horizon": first_divergence(points, tolerance),
        "trusted_steps": trust.trusted_steps,
        "trust": trust.words,
        "tolerance": tolerance,
    }
