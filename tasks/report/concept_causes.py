"""Which concepts carry the change of the loss, as the page shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WORDS = {"gain": "lowers the loss", "cost": "raises the loss", "nothing": "carries nothing"}


@dataclass(frozen=True)
class ConceptCausesView:
    """Concepts that were taken back, those that moved most first."""

    rows: Sequence[Mapping[str, Any]]  # of causes.parquet, with label and words
    figures: Mapping[str, Any]  # summary.json

    @property
    def line(self) -> str:
        """How many carry anything."""
        count, carrying = len(self.rows), self.figures["carrying"]
        if not count:
            return "No concept moved beyond its noise: none was taken back."
        said = {0: "None", count: "All"}.get(carrying, f"{carrying:,}")
        return f"{said} of {count:,} concepts that moved most {'carries' if carrying == 1 else 'carry'} any of it."


def concept_causes_view(
    rows: Sequence[Mapping[str, Any]], labels: Mapping[int, str | None], summary: Mapping[str, Any]
) -> ConceptCausesView:
    """Of causes.parquet, the concepts' labels, and summary.json."""
    told = [
        {**row, "label": labels.get(row["feature"]) or f"#{row['feature']}", "words": WORDS[row["verdict"]]}
        for row in rows
    ]
    return ConceptCausesView(told, summary)
