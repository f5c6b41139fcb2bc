"""Whether influence scores predict the held-out loss after training on other rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foretune.storage.refs import ArtifactRef
    from foretune.storage.runs import Run
    from foretune.tasks.samples.rows import SubsetRows


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


@dataclass(frozen=True)
class Halves:
    """Retrained halves of the rows beside the ranking that should have predicted them."""

    scored: list[dict[str, Any]]  # influence.parquet
    kept: list[list[str]]  # sample ids of each half
    losses: list[float]  # held-out loss after training on it, nats per token
    other_target: str | None  # the ranking's target, where it is no loss that the halves could be held against

    @classmethod
    def of(cls, run: Run, influence: ArtifactRef, half_rows: list[SubsetRows], losses: list[float]) -> Halves:
        artifact = run.store.open(influence)
        target = artifact.json("targets.json")[0]
        other = None if target["better"] == "lower" else target["name"]
        return cls(
            artifact.arrow("influence.parquet").to_pylist(),
            [list(half.subset.ids) for half in half_rows],
            losses,
            other,
        )

    @property
    def ranking(self) -> dict[str, Any] | None:
        return datamodeling(self.scored, self.kept, self.losses) if self.other_target is None else None

    def described(self) -> list[dict[str, Any]]:
        """Per half its rows, its held-out loss and the summed score of its rows."""
        totals = summed(self.scored, self.kept, self.scored[0]["method"])
        return [
            {"rows": len(ids), "heldout_loss": loss, "summed_influence": total}
            for ids, loss, total in zip(self.kept, self.losses, totals, strict=True)
        ]
