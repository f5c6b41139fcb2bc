"""Whether influence scores foretell what training on other rows does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any


def datamodeling(
    scored: list[dict[str, Any]], kept: Sequence[Sequence[str]], losses: Sequence[float]
) -> dict[str, Any] | None:
    """Rank correlation over retrained subsets of held-out loss with the summed scores of the rows kept.

    A score is the nats of held-out loss that training on the row adds, so that a right ranking is positive.
    `score` is that of the request's own method; None without subsets.
    """
    if not losses:
        return None
    import torch

    from foretune.tasks.numerics.agreement import datamodeling_score

    real, by_method = torch.tensor(losses).double().reshape(-1, 1), {}
    for method in methods_of(scored[0]):
        sums = torch.tensor(summed(scored, kept, method)).double().reshape(-1, 1)
        found = asdict(datamodeling_score(sums, real))
        by_method[method] = {name: number(found[name]) for name in ("score", "low", "high")}
    method = scored[0]["method"]
    return {"method": method, "subsets": len(losses), **by_method[method], "by_method": by_method}


def methods_of(row: dict[str, Any]) -> list[str]:
    """The scores that a ranking has: `lissa`, `preconditioned`, and `replayed` where rows were kept one by one."""
    return [name.removesuffix("_score") for name in row if name.endswith("_score")]


def summed(scored: list[dict[str, Any]], kept: Sequence[Sequence[str]], method: str) -> list[float]:
    """Sum of the scores of each subset's rows, nats of held-out loss."""
    score_of = {row["sample_id"]: row[f"{method}_score"] for row in scored}
    return [sum(score_of[sample_id] for sample_id in ids) for ids in kept]


def number(value: float) -> float | None:
    """None for what is not a number: JSON has no word for it."""
    return value if value == value else None
