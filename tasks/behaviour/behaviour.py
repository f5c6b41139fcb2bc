"""All suites, base beside predicted model: what changed beyond its interval, which items flipped, and a signal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.behaviour.items import Direction, Suite
from foretune.tasks.behaviour.paired import Change, paired_change
from foretune.tasks.behaviour.settings import ComparisonSettings
from foretune.tasks.engine.invariants import BrokenInvariant
from foretune.tasks.engine.passes import content_task
from foretune.tasks.engine.signals import Signal

NO_CHANGE = "no change measured"
RIGHT_OR_WRONG = ("choice", "match", "format")


@content_task(version=1)
def behaviour(
    draft: Any,
    run: Run,
    suites: list[Suite],
    base: list[ArtifactRef],
    predicted: list[ArtifactRef],
    settings: ComparisonSettings,
) -> None:
    """summary.json: per suite its change with interval and verdict, and the signals; items.parquet: every item."""
    import pyarrow as pa

    told, items = [], []
    for suite, first, second in zip(suites, base, predicted, strict=True):
        rows = joined_items(
            suite, *(run.store.open(ref).arrow("scores.parquet").to_pylist() for ref in (first, second))
        )
        scored = [row for row in rows if row["base"] is not None]
        change = paired_change(
            [row["base"] for row in scored],
            [row["predicted"] for row in scored],
            settings.confidence,
            settings.resamples,
            settings.seed,
        )
        told.append(suite_in_figures(suite, change, scored, len(rows) - len(scored)))
        items += rows
    draft.write_table("items.parquet", pa.Table.from_pylist(items, schema=_schema()))
    draft.write_json(
        "summary.json",
        {
            "confidence": settings.confidence,
            "resamples": settings.resamples,
            "seed": settings.seed,
            "suites": told,
            "signals": signals_of(told),
        },
    )


def joined_items(
    suite: Suite, base: Sequence[dict[str, Any]], predicted: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The same items under both models, in their order."""
    if [row["digest"] for row in base] != [row["digest"] for row in predicted]:
        raise BrokenInvariant(f"suite {suite.name}: base and predicted model were asked different items")
    return [
        {
            "suite": suite.name,
            "item": before["item"],
            "question": before["question"],
            "base": before["score"],
            "predicted": after["score"],
            "margin_base": before["margin"],
            "margin_predicted": after["margin"],
            "answer_base": before["answer"],
            "answer_predicted": after["answer"],
            "flip": _flip(before, after),
        }
        for before, after in zip(base, predicted, strict=True)
    ]


def _flip(before: dict[str, Any], after: dict[str, Any]) -> str | None:
    """What an item became: `right -> wrong`, `wrong -> right`; of a probability when it crosses one half."""
    if before["score"] is None or before["scorer"] == "loss":
        return None
    names = ("wrong", "right") if before["scorer"] in RIGHT_OR_WRONG else ("below half", "above half")
    if before["scorer"] == "refusal":
        names = ("complies", "refuses")
    was, now = (names[row["score"] > 0.5] for row in (before, after))
    return None if was == now else f"{was} -> {now}"


def suite_in_figures(suite: Suite, change: Change, rows: Sequence[dict[str, Any]], left_out: int) -> dict[str, Any]:
    """One suite in `summary.json`."""
    flips = [row["flip"] for row in rows if row["flip"]]
    return {
        "suite": suite.name,
        "measures": suite.measures,
        "direction": suite.direction,
        "critical": suite.critical,
        "unit": suite.unit,
        "source": suite.source,
        "licence": suite.licence,
        "n": change.items,
        "left_out": left_out,
        "base": change.base,
        "predicted": change.predicted,
        "change": change.change,
        "low": change.low,
        "high": change.high,
        "up": change.up,
        "down": change.down,
        "p": change.p,
        "flips": {flip: flips.count(flip) for flip in sorted(set(flips))},
        "verdict": verdict_of(change, suite.direction),
    }


def verdict_of(change: Change, direction: Direction) -> str:
    """`better`, `worse`, `changed` where neither way is better, or that no change was measured."""
    if not change.measured:
        return NO_CHANGE
    if direction == "either":
        return "changed"
    return "better" if (change.change > 0) == (direction == "higher") else "worse"


def signals_of(suites: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """`behaviour_regression` over all suites that get worse: critical where one of them must not."""
    worse = [suite for suite in suites if suite["verdict"] == "worse"]
    if not worse:
        return []
    told = ", ".join(
        f"{each['suite'].replace('_', ' ')} {each['base']:.3g} -> {each['predicted']:.3g} ({each['unit']})"
        for each in worse
    )
    severity = "critical" if any(each["critical"] for each in worse) else "warn"
    advice = f"{told} on the predicted model, beyond chance; look at the items that flipped, and at rows that teach it"
    return [Signal("behaviour_regression", severity, len(worse), 0, advice).stored()]


def _schema() -> Any:
    import pyarrow as pa

    numbers = ("base", "predicted", "margin_base", "margin_predicted")
    texts = ("answer_base", "answer_predicted", "flip")
    return pa.schema(
        {name: pa.string() for name in ("suite", "item", "question")}
        | {name: pa.float64() for name in numbers}
        | {name: pa.string() for name in texts}
    )
