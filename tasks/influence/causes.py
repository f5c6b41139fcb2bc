"""Which rows cause it: those that move a watched suite for the worse beyond noise, and do not help held-out loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.passes import content_task
from foretune.tasks.engine.signals import Signal

NAMED = 5  # rows in the signal's words
BAD = ("harms", "raises", "lowers")  # raises and lowers: of a suite of which neither way is better


@content_task(version=1, libraries=())
def causes(draft: Any, run: Run, influence: ArtifactRef, behaviour: ArtifactRef | None, outlier: float) -> None:
    """summary.json: per watched suite the rows that stand out, worst first, and the signal `behaviour_poison`.

    A row stands out whose verdict on the suite is no neutral one, and whose score is more than `outlier` robust
    standard deviations from the median on the bad side. Where the rows are ranked by held-out loss, one that helps it
    is no cause. `behaviour` says whether the suite gets worse on the predicted model.
    """
    scored = run.store.open(influence)
    watched = scored.arrow("watched.parquet").to_pylist()
    described = [target for target in scored.json("targets.json") if "watched" in target]
    ranked = scored.arrow("influence.parquet", columns=["sample_id", "verdict"]).to_pylist()
    by_loss = scored.json("targets.json")[0]["kind"] == "heldout"
    helping = {row["sample_id"] for row in ranked if row["verdict"] == "helps"} if by_loss else set[str]()
    suites = [] if behaviour is None else run.store.open(behaviour).json("summary.json")["suites"]
    verdicts = {suite["suite"]: suite["verdict"] for suite in suites}
    told = []
    for target in described:
        rows = [row for row in watched if row["suite"] == target["suite"]]
        told.append(
            {
                **{name: target[name] for name in ("suite", "unit", "better", "value", "items")},
                "verdict": verdicts.get(target["suite"]),
                "method": rows[0]["method"],
                **standing_out(rows, target["better"], helping, outlier),
            }
        )
    draft.write_json(
        "summary.json", {"suites": told, "by_loss": by_loss, "outlier": outlier, "signals": signals_of(told)}
    )


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


def signals_of(suites: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """`behaviour_poison` over all suites of which one way is worse: critical where one of them gets worse, too."""
    caused = [suite for suite in suites if suite["rows"] and suite["better"] is not None]
    if not caused:
        return []
    rows = {row["row"] for suite in caused for row in suite["rows"]}
    told = "; ".join(f"{suite['suite'].replace('_', ' ')}: {named(suite['rows'])}" for suite in caused)
    severity = "critical" if any(suite["verdict"] == "worse" for suite in caused) else "warn"
    advice = f"{told} would move it for the worse beyond noise, and do not help; read them, and leave them out"
    return [Signal("behaviour_poison", severity, len(rows), 0, advice).stored()]


def named(rows: Sequence[Mapping[str, Any]]) -> str:
    """The first rows by number and how many more."""
    first = ", ".join(str(row["row"]) for row in rows[:NAMED])
    more = f" and {len(rows) - NAMED:,} more" if len(rows) > NAMED else ""
    return f"row{'s'[: len(rows) != 1]} {first}{more}"
