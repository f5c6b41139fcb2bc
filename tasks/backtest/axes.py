"""Six scores between 0 and 1 of a simulation against real runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foretune.tasks.numerics.agreement import Agreement

AXES = {
    "direction": "cosine of the merged weight changes",
    "size": "ratio of their norms, the smaller over the larger",
    "loss": "share of the real held-out drop, 1 less its distance from 1",
    "layers": "rank correlation of the modules' norms",
    "concepts": "mean of Pearson, Spearman and top-50 sign accuracy of SAE feature changes",
    "samples": "rank correlation of summed influence and held-out loss over retrained halves",
}

MIN_HALVES = 4
"""Fewer retrained halves have no rank correlation to speak of."""


def scores(figures: Agreement) -> dict[str, float | None]:
    """One score per axis, 1 at best, at least 0; None for an axis that cannot be measured."""
    ratio = figures.norm_ratio
    features = (figures.feature_pearson, figures.feature_spearman, figures.feature_sign50)
    known = [figure for figure in features if figure is not None]
    return {
        "direction": _bounded(figures.cosine),
        "size": _bounded(min(ratio, 1 / ratio) if ratio else 0.0),
        "loss": _bounded(1 - abs(1 - figures.share)),
        "layers": _bounded(figures.module_spearman),
        "concepts": None if len(known) < len(features) else _bounded(sum(known) / len(known)),
    }


def axes_of(
    simulation: Sequence[Agreement],
    first_steps: Sequence[Agreement],
    reruns: Sequence[Agreement],
    influence: dict[str, Any] | None,
    retrain: int,
    sae: bool,
    other_target: str | None = None,
) -> list[dict[str, Any]]:
    """Per axis the scores of the simulation, of the real first step and of re-runs: {mean, low, high} or None.

    `low` and `high` are the worst and the best of the seeds; for `samples`, the interval of its bootstrap.
    `absent` is the reason why the simulation has no score there. `other_target` is the influence target, where that
    is not the held-out loss.
    """
    methods = {
        name: [scores(figures) for figures in found]
        for name, found in (("simulation", simulation), ("first_step", first_steps), ("rerun", reruns))
    }
    axes = []
    for name, meaning in AXES.items():
        axis: dict[str, Any] = {"axis": name, "meaning": meaning, "absent": None}
        axis |= {method: spread([score.get(name) for score in found]) for method, found in methods.items()}
        if name == "samples" and influence and influence["score"] is not None:
            axis["simulation"] = {
                end: _bounded(influence[key]) for end, key in (("mean", "score"), ("low", "low"), ("high", "high"))
            }
        if axis["simulation"] is None:
            axis["absent"] = _absent(name, retrain, sae, other_target)
        axes.append(axis)
    return axes


def spread(values: Sequence[float | None]) -> dict[str, float] | None:
    """Mean, lowest and highest; None where one of the values is missing, or all are."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return {"mean": fmean(known), "low": min(known), "high": max(known)}


def _absent(name: str, retrain: int, sae: bool, other_target: str | None) -> str:
    if name == "samples" and retrain < MIN_HALVES:
        return f"{retrain} halves asked for; a rank correlation needs at least {MIN_HALVES}"
    if name == "samples" and other_target is not None:
        return f"influence was asked about {other_target}, not about held-out loss"
    if name == "concepts" and not sae:
        return "the request names no SAE"
    return "nothing varies here, or nothing moved"


def _bounded(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else max(0.0, min(1.0, value))
