"""Does the predicted model behave as a really trained one does? The same suites, scored by the same pass."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.behaviour.items import Suite
from foretune.tasks.behaviour.paired import Change, paired_change
from foretune.tasks.behaviour.settings import ComparisonSettings
from foretune.tasks.engine.passes import content_task

SHARES = "nats per token"
"""The unit of suites whose scores are no shares or probabilities: they have another scale."""


@content_task(version=1)
def suite_agreement(
    draft: Any,
    run: Run,
    suites: list[Suite],
    base: list[ArtifactRef],
    predicted: list[ArtifactRef],
    real: list[list[ArtifactRef]],
    seeds: list[int],
    settings: ComparisonSettings,
) -> None:
    """suites.json: per suite the predicted and every real change, and over all suites how they go together. `real` is
    of every real run its suites."""

    def scores(ref: ArtifactRef) -> dict[str, float]:
        rows = run.store.open(ref).arrow("scores.parquet").to_pylist()
        return {row["digest"]: row["score"] for row in rows if row["score"] is not None}

    def changes(refs: Sequence[ArtifactRef]) -> list[Change]:
        pairs = [(scores(before), scores(after)) for before, after in zip(base, refs, strict=True)]
        shared = [sorted(before.keys() & after.keys()) for before, after in pairs]
        return [
            paired_change(
                [before[digest] for digest in digests],
                [after[digest] for digest in digests],
                settings.confidence,
                settings.resamples,
                settings.seed,
            )
            for (before, after), digests in zip(pairs, shared, strict=True)
        ]

    simulated, trained = changes(predicted), [changes(refs) for refs in real]
    rows = [suite_row(suite, simulated[n], [of_run[n] for of_run in trained]) for n, suite in enumerate(suites)]
    draft.write_json("suites.json", {"seeds": seeds, "suites": rows, "together": together(rows)})


def suite_row(suite: Suite, predicted: Change, real: Sequence[Change]) -> dict[str, Any]:
    """One suite: its change as predicted, and as every real run has it; `spread` is how far real runs differ."""
    found = [each.change for each in real]
    return {
        "suite": suite.name,
        "unit": suite.unit,
        "n": predicted.items,
        "base": predicted.base,
        "predicted": predicted.change,
        "low": predicted.low,
        "high": predicted.high,
        "real": found,
        "real_measured": [each.measured for each in real],
        "spread": max(found) - min(found) if len(found) > 1 else None,
        "same_sign": (predicted.change > 0) == (fmean(found) > 0) if any(each.measured for each in real) else None,
    }


def together(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Over the suites that are shares or probabilities: correlation of the changes with the first real run's, of the
    predicted ones and of another real run's; and of the suites that really moved how many signs are right."""
    shares = [row for row in rows if row["unit"] != SHARES]
    first = [row["real"][0] for row in shares]
    moved = [row["same_sign"] for row in rows if row["same_sign"] is not None]
    return {
        "suites": len(shares),
        "pearson": pearson([row["predicted"] for row in shares], first),
        "pearson_rerun": pearson([row["real"][1] for row in shares], first) if len(rows[0]["real"]) > 1 else None,
        "moved": len(moved),
        "signs_right": sum(moved),
    }


def pearson(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Correlation of two lists; None where one of them does not vary."""
    from statistics import StatisticsError, correlation

    try:
        return correlation(first, second)
    except StatisticsError:
        return None
