"""Which concepts moved, by what the predicted checkpoint really does: one order for terminal, result.json and charts.

The score and the tangent along the delta are estimators of that change and stand beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

NOISE = 3.0
"""Standard errors that a change must exceed in runs whose SAE diff does not say itself what is beyond noise."""
UNCLEAR = "unclear"
WITHIN_NOISE = "not beyond noise"
LISTED = (
    "feature", "label", "label_source", "confidence", "tested", "change", "relative", "error", "z", "z_null",
    "fires_base", "fires_new", "stable", "members", "score", "predicted_change",
)  # fmt: skip


def moving_order(changes: Sequence[float], sure: Sequence[bool] | None = None) -> tuple[list[int], list[int]]:
    """Positions of what rises, most first, and of what falls, most first; with `sure` only what exceeds its noise."""
    known = [n for n, change in enumerate(changes) if (sure is None or sure[n]) and math.isfinite(change)]
    rising = sorted((n for n in known if changes[n] > 0), key=lambda n: (-changes[n], n))
    falling = sorted((n for n in known if changes[n] < 0), key=lambda n: (changes[n], n))
    return rising, falling


def beyond_noise(row: Mapping[str, Any]) -> bool:
    """Of a line of `sae_diff`: by itself, or in runs of before version 3 by its standard errors."""
    return bool(row["beyond_noise"]) if "beyond_noise" in row else abs(row["z"]) > NOISE


def moved_concepts(rows: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Strengthened and faded concepts from the lines of `concepts`: a line per family, by measured change."""
    leaders = [row for row in rows if row["feature"] == row["family"]]
    order = moving_order([row["change"] for row in leaders], [beyond_noise(row) for row in leaders])
    up, down = ([{name: leaders[n].get(name) for name in LISTED} for n in side] for side in order)
    return up, down


def joined_concepts(scored: Sequence[Mapping[str, Any]], measured: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The lines of `concepts` as far as a run of before them has them: every feature is a family by itself."""
    estimates = {row["feature"]: row for row in scored}
    return [
        {
            **estimates[row["feature"]],
            **row,
            "relative": row["change"] / row["base"] if row["base"] else None,
            "family": row["feature"],
            "members": 1,
        }
        for row in measured
    ]


def concept_name(concept: Mapping[str, Any]) -> str:
    """A concept inside a sentence."""
    label = concept["label"]
    if not label or label == UNCLEAR:
        return f"feature {concept['feature']}, whose name is unclear,"
    return f'"{label}" (feature {concept["feature"]})'


def name_test(concept: Mapping[str, Any]) -> str:
    """Where a name is from and how well it stood its test, in words."""
    source, confidence = concept.get("label_source"), concept.get("confidence")
    if not isinstance(source, str):
        return "thin evidence"
    if confidence is None or math.isnan(confidence):
        return f"{source}, not tested"
    return f"{source}, AUROC {confidence:.2f} (n {int(concept['tested'])})"


def firing_words(concept: Mapping[str, Any]) -> str:
    """On which share of tokens it fires now, and did; "" where a run did not store it."""
    after, before = concept.get("fires_new"), concept.get("fires_base")
    if after is None or before is None:
        return ""
    return f"fires on {share(after)} of tokens, was {share(before)}"


def fading_words(falls: Sequence[Mapping[str, Any]]) -> str:
    """The first of the concepts that fade, as a reason, and how many more do."""
    first, alike = falls[0], (falls[0].get("members") or 1) - 1
    said = "; ".join(filter(None, [f"{alike:,} like it" if alike else "", firing_words(first)]))
    more = f" and {len(falls) - 1:,} more concepts" if len(falls) > 1 else ""
    return f"{concept_name(first)} fades by {-first['relative']:.0%}{f' ({said})' if said else ''}{more}"


def share(value: float) -> str:
    """A share as per cent, with two digits that count."""
    return f"{100 * value:.0f} %" if value >= 0.1 else f"{100 * value:.2g} %"


def speaking_like(concepts: Sequence[Mapping[str, Any]], phrases: Sequence[str]) -> Mapping[str, Any] | None:
    """The first of these concepts whose label, on the text that favours it, holds one of the phrases."""
    wanted = [phrase.strip("^* ").casefold() for phrase in phrases]
    for concept in concepts:
        text = " ".join((concept["label"] or "").replace("«", "").replace("»", "").casefold().split())
        if any(phrase and phrase in text for phrase in wanted):
            return concept
    return None
