"""Which rows cause it: those that move a watched suite for the worse beyond noise, and do not help held-out loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.passes import content_task

BAD = ("harms", "raises", "lowers")  # raises and lowers: of a suite of which neither way is better


@content_task(version=1, libraries=())
def causes(draft: Any, run: Run, influence: ArtifactRef, outlier: float) -> None:
    """summary.json: per watched suite the rows that stand out, worst first.

    A row stands out whose verdict on the suite is no neutral one, and whose score is more than `outlier` robust
    standard deviations from the median on the bad side. Where the rows are ranked by held-out loss, one that helps it
    is no cause.
    """
    scored = run.store.open(influence)
    watched = scored.arrow("watched.parquet").to_pylist()
    described = [target for target in scored.json("targets.json") if "watched" in target]
    ranked = scored.arrow("influence.parquet", columns=["sample_id", "verdict"]).to_pylist()
    by_loss = scored.json("targets.json")[0]["kind"] == "heldout"
    helping = {row["sample_id"] for row in ranked if row["verdict"] == "helps"} if by_loss else set[str]()
    told = []
    for target in described:
        rows = [row for row in watched if row["suite"] == target["suite"]]
        told.append(
            {
                **{name: target[name] for name in ("suite", "unit", "better", "value", "items")},
                "method": rows[0]["method"],
                **standing_out(rows, target["better"], helping, outlier),
            }
        )
    draft.write_json("summary.json", {"suites": told, "by_loss": by_loss, "outlier": outlier})


def standing_out(
    rows: Sequence[Mapping[str, Any]], better: str | None, helping: set[str], outlier: float
) -> dict[str, Any]:
    """The rows of one suite that cause it, worst first, and how many were left out because they help."""
    sign = {"higher": -1.0, "lower": 1.0, None: None}[better]
    beyond = [
        row for row in rows if row["verdict"] in BAD and (abs(row["z"]) if sign is None else sign * row["z"]) > outlier
    ]
    kept = ("row", "sample_id", "score", "z", "error")
    return {
        "rows": [{name: row[name] for name in kept} for row in beyond if row["sample_id"] not in helping],
        "helping": sum(row["sample_id"] in helping for row in beyond),
    }
