"""Scores of rows whose gradients were not measured, from what is known of every row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.inputs.sample_values import SampleValues
from foretune.tasks.samples.dataset import label_tokens

if TYPE_CHECKING:
    from torch import Tensor

    from foretune.tasks.numerics.regression import Regression


@dataclass(frozen=True)
class Estimated:
    """Scores of some rows; all by the same features."""

    by: str  # what the scores follow from
    ids: list[str]
    scores: list[float]
    error: float  # of a score: root mean square of what leaving out a measured row gets wrong
    explained: float  # share of the measured scores' variance that is told when a row is left out

    def told(self) -> dict[str, Any]:
        """All but the rows themselves."""
        return {"by": self.by, "rows": len(self.ids), "error": self.error, "explained": self.explained}


def estimated(
    run: Run,
    ids: list[str],
    scores: Tensor,
    first_order: Tensor,
    samples: ArtifactRef,
    landscape: ArtifactRef,
    differences: list[ArtifactRef],
) -> list[Estimated]:
    """The scores of all other rows of `samples` by those [m] of the rows `ids`.

    Where `differences` were taken they follow from the first order of each row's effect, `first_order` [m] for the
    measured ones; else from the loss and the length where the row was read, and from the length where it was not.
    """
    import torch

    from foretune.tasks.numerics.regression import regressed

    def column(values: list[list[float]]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)

    if differences:
        taken = SampleValues.read(run, differences, "differences.safetensors", "preconditioned")
        found = regressed(first_order[:, None], scores[:, None], taken.values[:, None])
        return [_told("a forward beside the base weights", taken.ids, found)]
    rows = run.store.open(landscape).arrow("samples.parquet", columns=["sample_id", "tokens", "loss"]).to_pylist()
    read = {row["sample_id"]: [(row["loss"] or 0.0) * row["tokens"], row["tokens"], row["loss"] or 0.0] for row in rows}
    lengths, known = {i: [float(count)] for i, count in label_tokens(run, samples).items()}, set(ids)
    parts = {
        "the loss and the length": ([i for i in read if i not in known], read),
        "the length": ([i for i in lengths if i not in read], lengths),
    }
    return [
        _told(by, others, regressed(column([of[i] for i in ids]), scores[:, None], column([of[i] for i in others])))
        for by, (others, of) in parts.items()
        if others
    ]


def _told(by: str, ids: list[str], found: Regression) -> Estimated:
    return Estimated(by, ids, found.scores[:, 0].tolist(), float(found.errors[0]), float(found.explained[0]))
