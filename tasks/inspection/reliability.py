"""Accuracy by confidence, before and after: the bins of a reliability diagram."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foretune.tasks.numerics.comparison import TokenComparison


def calibration_rows(name: str, tokens: TokenComparison, bins: int) -> list[dict[str, Any]]:
    """Bins with a token of the set `name`, under both models: tokens, mean confidence, share that came true."""
    from foretune.tasks.numerics.calibration import reliability_bins

    rows = []
    for side in ("base", "new"):
        binned = reliability_bins(getattr(tokens, f"confidence_{side}"), getattr(tokens, f"correct_{side}"), bins)
        columns = (values.tolist() for values in (binned.count, binned.confidence, binned.correct))
        rows += [
            {
                "set": name,
                "model": side,
                "from": number / bins,
                "to": (number + 1) / bins,
                "tokens": count,
                "confidence": confidence / count,
                "accuracy": correct / count,
            }
            for number, (count, confidence, correct) in enumerate(zip(*columns, strict=True))
            if count
        ]
    return rows
