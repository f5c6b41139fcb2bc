"""Each suite along the predicted path: where it leaves its band, and how much of the gain was there already.

The band is what noise alone does: the largest change under random deltas of the prediction's size, and the largest
difference between the predicted end and those of other orders of the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.behaviour.items import Suite
from foretune.tasks.behaviour.paired import Change, paired_change
from foretune.tasks.behaviour.settings import ComparisonSettings
from foretune.tasks.engine.passes import content_task

Scores = dict[str, float]
"""Of the items that were asked along the path, by digest."""


@content_task(version=1)
def behaviour_path(
    draft: Any,
    run: Run,
    suites: list[Suite],
    base: list[ArtifactRef],
    predicted: list[ArtifactRef],
    along: list[ArtifactRef],
    variants: ArtifactRef,
    prediction: ArtifactRef,
    settings: ComparisonSettings,
) -> None:
    """summary.json: held-out loss and share of the gain by step; per suite curve, band and where it leaves it."""
    stored, measured = run.store.open(variants).json("variants.json"), run.store.open(prediction)
    points = loss_points(measured.arrow("path.parquet").to_pylist(), stored)
    told = []
    for suite, *refs in zip(suites, base, predicted, along, strict=True):
        before, after, between = (run.store.open(ref).arrow("scores.parquet").to_pylist() for ref in refs)
        told.append(suite_along(suite, before, after, between, points, settings))
    kinds = [each["kind"] for each in stored["variants"]]
    draft.write_json("summary.json", {"points": points, "orders": kinds.count("order"), "suites": told})


def loss_points(path: Sequence[dict[str, Any]], stored: dict[str, Any]) -> list[dict[str, Any]]:
    """Steps with the evaluated loss there, and its share of the whole fall; the share is None where nothing falls."""
    known = {0: path[0]["evaluated_loss"], stored["end"]: path[-1]["evaluated_loss"]}
    known |= {each["step"]: each["loss"] for each in stored["variants"] if each["kind"] == "waypoint"}
    start, end = known[0], known[stored["end"]]
    gain = start - end
    return [
        {"step": step, "loss": known[step], "gain_share": (start - known[step]) / gain if gain > 0 else None}
        for step in sorted(known)
    ]


def suite_along(
    suite: Suite,
    before: Sequence[dict[str, Any]],
    after: Sequence[dict[str, Any]],
    between: Sequence[dict[str, Any]],
    points: Sequence[dict[str, Any]],
    settings: ComparisonSettings,
) -> dict[str, Any]:
    """One suite: `before` and `after` are the scores under the base and the predicted model, `between` those of the
    items that were asked at other weights too."""
    at: dict[tuple[str, int, int], Scores] = {}
    for row in between:
        if row["score"] is not None:
            at.setdefault((row["kind"], row["step"], row["seed"]), {})[row["digest"]] = row["score"]
    asked = {digest for scores in at.values() for digest in scores}
    start, end = ({row["digest"]: row["score"] for row in side if row["digest"] in asked} for side in (before, after))

    def change(scores: Scores) -> Change:
        shared = sorted(start.keys() & scores.keys())
        sides = [start[digest] for digest in shared], [scores[digest] for digest in shared]
        return paired_change(*sides, settings.confidence, settings.resamples, settings.seed)

    if not asked:
        return {
            "suite": suite.name,
            "direction": suite.direction,
            "unit": suite.unit,
            "n": 0,
            "curve": [],
            "band": None,
        }
    last = change(end)
    ways = {step: change(scores) for (kind, step, _), scores in sorted(at.items()) if kind == "waypoint"}
    orders = [change(scores).change - last.change for (kind, *_), scores in sorted(at.items()) if kind == "order"]
    nulls = [change(scores).change for (kind, *_), scores in sorted(at.items()) if kind == "null"]
    noise = [abs(value) for value in (*orders, *nulls)]
    band = max(noise) if noise else None
    curve = [_point(0, change(start)), *(_point(step, each) for step, each in ways.items())]
    curve.append(_point(points[-1]["step"], last))
    return {
        "suite": suite.name,
        "direction": suite.direction,
        "unit": suite.unit,
        "n": last.items,
        "curve": curve,
        "orders": orders,
        "nulls": nulls,
        "band": band,
        **departure(suite, curve, band, points),
    }


def departure(
    suite: Suite, curve: Sequence[dict[str, Any]], band: float | None, points: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The first step at which the suite is beyond its band for the worse (or at all, where neither way is better), if
    it is so at the end too; and the last step before that, with the share of the gain that was there already."""
    none = {"leaves_at": None, "last_within": None, "gain_within": None}
    if band is None or not _beyond(suite, curve[-1], band):
        return none
    first = next(n for n, point in enumerate(curve) if _beyond(suite, point, band))
    step, gains = curve[first - 1]["step"], {point["step"]: point["gain_share"] for point in points}
    return {"leaves_at": curve[first]["step"], "last_within": step, "gain_within": gains.get(step)}


def _beyond(suite: Suite, point: dict[str, Any], band: float) -> bool:
    """Whether a change is larger than noise makes it, has an interval that leaves out zero, and is for the worse."""
    if not point["measured"] or abs(point["change"]) <= band:
        return False
    return suite.direction == "either" or (point["change"] < 0) == (suite.direction == "higher")


def _point(step: int, change: Change) -> dict[str, Any]:
    return {
        "step": step,
        "score": change.predicted,
        "change": change.change,
        "low": change.low,
        "high": change.high,
        "measured": change.measured,
    }
