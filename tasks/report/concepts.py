"""Which concepts moved, by what the predicted checkpoint really does: one order for terminal, result.json and charts.

The seed's score and the tangent along the delta are estimators of that change and stand beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

NOISE = 3.0
"""Standard errors that a change must exceed to be called one, as `features_moved` counts: thousands of features are
compared, and at two standard errors a twentieth of those that stand still would be named."""


def moving_order(changes: Sequence[float], zs: Sequence[float] | None = None) -> tuple[list[int], list[int]]:
    """Positions of what rises, most first, and of what falls, most first; with `zs` only what exceeds its noise."""
    sure = [True] * len(changes) if zs is None else [abs(z) > NOISE for z in zs]
    known = [n for n, change in enumerate(changes) if sure[n] and math.isfinite(change)]
    rising = sorted((n for n in known if changes[n] > 0), key=lambda n: (-changes[n], n))
    falling = sorted((n for n in known if changes[n] < 0), key=lambda n: (changes[n], n))
    return rising, falling


def moved_concepts(
    scored: Sequence[Mapping[str, Any]], measured: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Strengthened and suppressed concepts by measured change, from the tables of `features` and of `sae_diff`."""
    estimates = {row["feature"]: row for row in scored}
    order = moving_order([row["change"] for row in measured], [row["z"] for row in measured])
    up, down = ([_named(measured[n], estimates[measured[n]["feature"]]) for n in side] for side in order)
    return up, down


def _named(moved: Mapping[str, Any], estimate: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "feature": moved["feature"],
        "label": estimate["label"],
        "change": moved["change"],
        "relative": moved["change"] / moved["base"] if moved["base"] else None,
        "z": moved["z"],
        "score": estimate["score"],
        "predicted_change": estimate["predicted_change"],
    }


def speaking_like(concepts: Sequence[Mapping[str, Any]], phrases: Sequence[str]) -> Mapping[str, Any] | None:
    """The first of these concepts whose label, on the text that favours it, holds one of the phrases."""
    wanted = [phrase.strip("^* ").casefold() for phrase in phrases]
    for concept in concepts:
        text = " ".join((concept["label"] or "").replace("«", "").replace("»", "").casefold().split())
        if any(phrase and phrase in text for phrase in wanted):
            return concept
    return None
