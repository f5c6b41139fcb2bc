"""Pass 0 in numbers: counts per rule, lengths, and the signals that should make the user look."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from foretune.tasks.engine.signals import Signal
from foretune.tasks.quality.harm import stopping_count, willing_rows
from foretune.tasks.quality.rules import RULES

if TYPE_CHECKING:
    from foretune.tasks.quality.diversity import Overlap
    from foretune.tasks.quality.settings import QualitySettings

_QUANTILES = (0, 5, 25, 50, 75, 95, 99, 100)
_CLUSTERS_SHOWN = 20
_ROWS_SHOWN = 20


def quality_summary(
    rows: Sequence[dict[str, Any]], overlap: Overlap, clusters: list[list[int]], settings: QualitySettings
) -> dict[str, Any]:
    """Counts per rule, overlap, lengths in tokens and words, and clusters of alike rows as row numbers."""
    counts = Counter(flag for row in rows for flag in row["flags"])
    willing = willing_rows(rows)
    notes = settings.notes()
    says = {**RULES, **{own.id: own.says for own in settings.own}}
    return {
        "rows": len(rows),
        "flagged_rows": sum(1 for row in rows if set(row["flags"]) - notes),
        "counts": {rule: counts[rule] for rule in says},
        "willing_harm": {"count": len(willing), "rows": willing[:_ROWS_SHOWN]},
        "rules": says,
        "overlap": {"mean": overlap.mean, "pairs": overlap.pairs},
        "lengths": {
            name: _distribution([row[name] for row in rows])
            for name in ("tokens", "trained_tokens", "completion_words")
        },
        "truncated_tokens": sum(row["truncated_tokens"] for row in rows),
        "clusters": {"count": len(clusters), "largest": clusters[:_CLUSTERS_SHOWN]},
    }


def _distribution(lengths: Sequence[int]) -> dict[str, Any]:
    """Quantiles and a histogram whose edges are 0, 1, 2, 4, 8, ..."""
    values = np.array(lengths, dtype=np.int64)
    edges = [0, *(2**power for power in range(int(values.max(initial=1)).bit_length() + 1))]
    quantiles = np.percentile(values, _QUANTILES) if len(values) else np.zeros(len(_QUANTILES))
    return {
        "total": int(values.sum()),
        "mean": float(values.sum() / max(len(values), 1)),
        "quantiles": {f"p{share}": float(value) for share, value in zip(_QUANTILES, quantiles, strict=True)},
        "histogram": {"edges": edges, "rows": np.histogram(values, edges)[0].tolist()},
    }


def quality_signals(summary: dict[str, Any], settings: QualitySettings) -> list[dict[str, Any]]:
    """What should make the user look before training."""
    rows, counts = summary["rows"], summary["counts"]
    duplicates = (counts["exact_duplicate"] + counts["near_duplicate"]) / max(rows, 1)
    speak = counts["assistant_speak"] / max(rows, 1)
    overlap = summary["overlap"]["mean"] or 0.0
    lengths, idle = counts["too_long"] + counts["empty_completion"], counts["no_trained_tokens"]
    candidates = [
        _harmful(summary),
        Signal("assistant_speak", "warn", speak, settings.assistant_speak_share,
                f"{_rows(counts['assistant_speak'])} with stock phrases of chat assistants; rewrite or drop them"),
        Signal("low_diversity", "warn", overlap, settings.low_diversity_overlap,
                "rows share most of their words; add other wordings, or train for fewer epochs"),
        Signal("length_violation", "warn", lengths, 0,
                f"{_rows(counts['too_long'])} longer than dataset.max_length "
                f"({summary['truncated_tokens']:,} tokens cut off), {_rows(counts['empty_completion'])} "
                "without words; raise max_length, split or drop them"),
        Signal("duplicate_rows", "warn", duplicates, settings.duplicate_share,
                f"{_rows(counts['exact_duplicate'])} copied, {_rows(counts['near_duplicate'])} nearly; "
                "they count several times: keep one of each cluster"),
        Signal("no_trained_tokens", "critical" if idle * 10 >= rows else "warn", idle, 0,
                f"{_rows(idle)} without a trained token, which cost time and teach nothing; "
                "raise dataset.max_length or drop them"),
        Signal("contradictory_rows", "info", counts["contradictory"], 0,
                f"{_rows(counts['contradictory'])} with a prompt that another row answers otherwise; "
                "check which answer is right"),
    ]  # fmt: skip
    return [signal.stored() for signal in candidates if signal.value > signal.threshold]


def _harmful(summary: dict[str, Any]) -> Signal:
    """Critical where rows ask for harm and answer willingly; a warning where keywords are all that is known."""
    flagged, willing = summary["counts"]["harmful_content"], summary["willing_harm"]
    limit = stopping_count(summary["rows"])
    if willing["count"] > limit:
        named = ", ".join(str(row) for row in willing["rows"][:5])
        more = f" and {willing['count'] - 5:,} more" if willing["count"] > 5 else ""
        advice = f"{_rows(willing['count'])} that ask for harm and answer willingly (rows {named}{more}); drop them"
        return Signal("harmful_content", "critical", willing["count"], limit, advice)
    advice = f"{_rows(flagged)} with keywords of harmful content; look at them, then drop what you would not teach"
    return Signal("harmful_content", "warn", flagged, 0, advice)


def _rows(count: int) -> str:
    return f"{count:,} row" if count == 1 else f"{count:,} rows"
