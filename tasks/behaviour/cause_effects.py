"""What the rows that cause it are worth: each watched suite as predicted, without them, and without as many others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.behaviour.items import Suite
from foretune.tasks.behaviour.paired import paired_change
from foretune.tasks.behaviour.settings import ComparisonSettings
from foretune.tasks.engine.passes import content_task


@content_task(version=1, libraries=("numpy",))
def cause_effects(
    draft: Any,
    run: Run,
    causes: ArtifactRef,
    suites: list[Suite],
    base: list[ArtifactRef],
    predicted: list[ArtifactRef],
    without: list[ArtifactRef],
    variants: ArtifactRef,
    prediction: ArtifactRef,
    settings: ComparisonSettings,
) -> None:
    """summary.json: per suite the scores of the same items, and the change that leaving the rows out makes, with its
    interval; the held-out losses."""
    stored = run.store.open(variants).json("variants.json")["variants"]
    named = run.store.open(causes).json("summary.json")["suites"]
    losses = {each["kind"]: each["loss"] for each in stored}
    told = []
    for suite, *refs in zip(suites, base, predicted, without, strict=True):
        before, after, left_out = (run.store.open(ref).arrow("scores.parquet").to_pylist() for ref in refs)
        sides = {"base": before, "predicted": after}
        sides |= {kind: [row for row in left_out if row["kind"] == kind] for kind in losses}
        if losses:
            scores = {kind: {row["digest"]: row["score"] for row in rows} for kind, rows in sides.items()}
            told.append(effect_of(suite, scores, settings))
    path = run.store.open(prediction).arrow("path.parquet").to_pylist()
    draft.write_json(
        "summary.json",
        {
            "rows": len({row["row"] for suite in named for row in suite["rows"]}),
            "suites": told,
            "loss": {"predicted": path[-1]["evaluated_loss"], **losses} if losses else None,
        },
    )


def effect_of(
    suite: Suite, sides: Mapping[str, Mapping[str, float | None]], settings: ComparisonSettings
) -> dict[str, Any]:
    """One suite, over the items that were scored under all weights; `sides` are scores by digest, of the `predicted`
    model, `without` the rows, and without as many others (`control`). A change is measured that is larger than theirs
    and whose interval leaves out zero."""
    scores = {kind: {n: score for n, score in each.items() if score is not None} for kind, each in sides.items()}
    shared = sorted(set.intersection(*(set(each) for each in scores.values())))
    values = {kind: [each[digest] for digest in shared] for kind, each in scores.items()}
    change = paired_change(
        values["predicted"], values["without"], settings.confidence, settings.resamples, settings.seed
    )
    means = {kind: sum(each) / max(len(each), 1) for kind, each in values.items()}
    by_others = means["control"] - means["predicted"]  # items' intervals know nothing of another order of the rows
    return {
        "suite": suite.name,
        "unit": suite.unit,
        "direction": suite.direction,
        "n": len(shared),
        **means,
        "change": change.change,
        "low": change.low,
        "high": change.high,
        "measured": change.measured and abs(change.change) > abs(by_others),
    }
