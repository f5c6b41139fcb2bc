"""Pass 2b: what every sample does to the held-out loss, or to another target, and what to read from it.

Three scores, each the change of the target that training on the sample causes:
`lissa` -<(H + dI)^-1 g, d loss_i> / tokens; `preconditioned` the same along the derivative of the optimizer's own
expected step, times the learning rates; `replayed` a linear datamodel over the surrogate retrained on random halves.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.invariants import LISSA_WITHIN_BUDGET
from foretune.tasks.engine.passes import content_task
from foretune.tasks.influence.estimated import Estimated, estimated
from foretune.tasks.inputs.sample_values import SampleValues
from foretune.tasks.inputs.training import Schedule
from foretune.tasks.samples.dataset import row_numbers

if TYPE_CHECKING:
    from torch import Tensor

NEAREST = 3  # held-out rows named beside a sample
INTERVAL = 1.96  # standard errors on either side: 95 %


class RankingSettings(BaseModel):
    """The settings that decide order and verdicts of a ranking, and no score."""

    model_config = ConfigDict(extra="forbid")

    method: Literal["auto", "replayed", "preconditioned", "lissa"]
    neutral: float
    outlier: float


@content_task(version=3, libraries=("torch",))
def influence(
    draft: Any,
    run: Run,
    samples: ArtifactRef,
    shards: list[ArtifactRef],
    gradient: ArtifactRef,
    solve: ArtifactRef | None,
    targets: ArtifactRef,
    schedule: Schedule,
    settings: RankingSettings,
    replays: ArtifactRef | None = None,
    landscape: ArtifactRef | None = None,
    differences: list[ArtifactRef] | None = None,
) -> None:
    """influence.parquet: ranked from the most harmful; targets.parquet: every further target's score of each sample;
    watched.parquet: the same for every watched suite, by `best_method`, where there is one."""
    rows = row_numbers(run, samples)
    described = run.store.open(targets).json("targets.json")
    counts = run.store.open(gradient).json("counts.json")
    ids, scores = sample_scores(run, shards, replays, counts, schedule, solved=solve is not None)
    method = settings.method if settings.method in scores else best_method(scores)
    of_first = {name: values[:, 0].tolist() for name, values in scores.items()}
    of_every_target = scores[best_method(scores)]
    nearest = dict(zip(ids, nearest_rows(of_every_target, described), strict=True))
    errors = score_errors(run, replays, ids, schedule) if method == "replayed" and replays else None
    others: list[Estimated] = []
    if len(rows) > len(ids) and landscape is not None:
        chosen, first = scores[method][:, 0], scores["preconditioned"][:, 0]
        others = estimated(run, ids, chosen, first, samples, landscape, differences or [])
    table = ranked(ids, rows, of_first, method, described[0], settings, errors, others)
    none = {"nearest_rows": [], "nearest_scores": []}
    draft.write_table("influence.parquet", [entry | nearest.get(entry["sample_id"], none) for entry in table])
    first_watched = sum("watched" not in target for target in described)  # they come last
    asked = described[:first_watched]
    draft.write_table("targets.parquet", target_table(ids, rows, of_every_target[:, :first_watched], asked))
    draft.write_json("targets.json", described)
    record = {"ranked_by": method, "target": described[0]["name"]}
    if solve is not None:
        solved = run.store.open(solve)
        draft.checks += [check for check in solved.manifest.checks if check.name == LISSA_WITHIN_BUDGET]
        record = solved.json("solver.json") | record
    if others:
        record["estimated"] = [part.told() for part in others]
    if asked != described:
        by = best_method(scores)
        suites = zip(described[first_watched:], of_every_target[:, first_watched:].T.tolist(), strict=True)
        watched = []
        for column, (suite, of_suite) in enumerate(suites, start=first_watched):
            known = score_errors(run, replays, ids, schedule, column) if replays else None
            watched += watched_rows(ids, rows, of_suite, suite, settings, by, known)
        draft.write_table("watched.parquet", watched)
        record |= {"watched_by": by}
    record |= {"unit": described[0]["unit"], "spread": spread_of(of_first[method])[1]}
    if replays is not None:
        record |= {f"replays_{name}": value for name, value in run.store.open(replays).json("replays.json").items()}
    draft.write_json("solver.json", record)


def best_method(scores: dict[str, Tensor]) -> str:
    """The replays where there are any, which need rows kept one by one; else the preconditioned derivative."""
    return "replayed" if "replayed" in scores else "preconditioned"


def sample_scores(
    run: Run,
    shards: list[ArtifactRef],
    replays: ArtifactRef | None,
    counts: dict[str, Any],
    schedule: Schedule,
    solved: bool,
) -> tuple[list[str], dict[str, Tensor]]:
    """Sample ids, and per method [n, targets] float64 change of every target; `lissa`, where there was a solve, has the
    first target alone."""
    first_order = SampleValues.read(run, shards, "derivatives.safetensors", "preconditioned")
    ids, elapsed_lr = first_order.ids, sum(schedule.rates(counts["rows"]))
    tokens = counts["tokens"] * schedule.whole(counts["rows"]) / counts["rows"]  # a row's share is that of all rows
    scores = {}
    if solved:
        lissa = SampleValues.read(run, shards, "derivatives.safetensors", "lissa")
        scores["lissa"] = -lissa.values.unsqueeze(1) / tokens
    scores["preconditioned"] = -elapsed_lr / tokens * first_order.values
    if replays is not None:  # a row without a label is in no replay, and does nothing
        replayed = SampleValues.read(run, [replays], "scores.safetensors", "replayed")
        scores["replayed"] = replayed.spread_over(ids) * schedule.learning_rate
    return ids, scores


def score_errors(run: Run, replays: ArtifactRef, ids: list[str], schedule: Schedule, target: int = 0) -> list[float]:
    """Standard error of each sample's replayed score of a target; 0 for a row that is in no replay."""
    stored = SampleValues.read(run, [replays], "scores.safetensors", "replayed_error")
    return (stored.spread_over(ids)[:, target] * schedule.learning_rate).tolist()


def spread_of(scores: list[float]) -> tuple[float, float]:
    """Mean and standard deviation."""
    mean = sum(scores) / len(scores)
    return mean, (sum((s - mean) ** 2 for s in scores) / max(len(scores) - 1, 1)) ** 0.5


def with_estimated(
    ids: list[str],
    scores: dict[str, list[float]],
    method: str,
    errors: list[float] | None,
    others: Sequence[Estimated],
) -> tuple[list[str], dict[str, list[Any]], list[Any]]:
    """Ids, scores by method and errors of the measured rows, and behind them those of the others by `method` alone."""
    everyone, by, known = list(ids), {name: list(values) for name, values in scores.items()}, list(errors or [])
    known = known or [None] * len(ids)
    for part in others:
        everyone += part.ids
        known += [part.error] * len(part.ids)
        for name, values in by.items():
            values += part.scores if name == method else [None] * len(part.ids)
    return everyone, by, known


def ranked(
    ids: list[str],
    rows: dict[str, int],
    scores: dict[str, list[float]],
    method: str,
    target: dict[str, Any],
    settings: RankingSettings,
    errors: list[float] | None = None,
    others: Sequence[Estimated] = (),
) -> list[dict[str, Any]]:
    """Rank 1 does most harm to the target, or raises a concept most.

    `z` is the score's distance from the mean in standard deviations, `outlier` says whether it lies beyond
    `settings.outlier`. Verdict `neutral` when |score| is at most `settings.neutral` standard deviations, or, with the
    scores' own standard `errors`, when its 95 % interval holds zero; else `harms` or `helps`, and for a concept, where
    neither is better, `raises` or `lowers`. `others` are rows whose scores were estimated from these.
    """
    measured = len(ids)
    ids, by_method, known = with_estimated(ids, scores, method, errors, others)
    chosen = by_method[method]
    mean, spread = spread_of(chosen)
    sign = -1.0 if target["better"] == "higher" else 1.0  # a positive sign * score does harm
    above, below = ("raises", "lowers") if target["better"] is None else ("harms", "helps")
    order = sorted(range(len(ids)), key=lambda i: (-sign * chosen[i], ids[i]))
    table = []
    for rank, i in enumerate(order, start=1):
        z = (chosen[i] - mean) / spread if spread else 0.0
        error = known[i]
        neutral = abs(chosen[i]) <= max(settings.neutral * spread, INTERVAL * (error or 0.0))
        direction = above if sign * chosen[i] > 0 else below
        table.append(
            {
                "sample_id": ids[i],
                "row": rows[ids[i]],
                "score": chosen[i],
                "rank": rank,
                "verdict": "neutral" if neutral else direction,
                "z": z,
                "error": error,
                "outlier": abs(z) > settings.outlier,
                "method": method if i < measured else "estimated",
                **{f"{name}_score": values[i] for name, values in by_method.items()},
            }
        )
    return table


def watched_rows(
    ids: list[str],
    rows: dict[str, int],
    scores: list[float],
    target: dict[str, Any],
    settings: RankingSettings,
    method: str,
    errors: list[float] | None,
) -> list[dict[str, Any]]:
    """What every row does to one watched suite, as `ranked`; `z` is from the median in robust standard deviations, so
    that the rows that stand out do not widen what they are held against."""
    table = ranked(ids, rows, {method: scores}, method, target, settings, errors)
    middle, spread = robust_spread(scores)
    kept = ("sample_id", "row", "score", "rank", "verdict", "error", "method")
    return [
        {
            "suite": target["suite"],
            **{name: entry[name] for name in kept},
            "z": (entry["score"] - middle) / spread if spread else 0.0,
        }
        for entry in table
    ]


def robust_spread(scores: list[float]) -> tuple[float, float]:
    """Median, and 1.4826 x the median distance from it: the standard deviation of normal scores. Where half of them
    are equal, the plain one."""
    middle = median(scores)
    spread = 1.4826 * median(abs(score - middle) for score in scores)
    return middle, spread or spread_of(scores)[1]


def nearest_rows(scores: Tensor, described: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per sample the held-out rows whose loss it moves most, by number, and by how many nats."""
    columns = [n for n, target in enumerate(described) if target["kind"] == "row"]
    if not columns:
        return [{"nearest_rows": [], "nearest_scores": []} for _ in range(len(scores))]
    of_rows = scores[:, columns]
    top = of_rows.abs().topk(min(NEAREST, len(columns)), dim=1).indices
    return [
        {
            "nearest_rows": [described[columns[n]]["row"] for n in chosen.tolist()],
            "nearest_scores": of_rows[sample, chosen].tolist(),
        }
        for sample, chosen in enumerate(top)
    ]


def target_table(ids: list[str], rows: dict[str, int], scores: Tensor, described: list[dict[str, Any]]) -> Any:
    """One row per sample and target: sample_id, row, target, kind, score."""
    import pyarrow as pa

    samples, targets = scores.shape
    return pa.table(
        {
            "sample_id": [sample_id for sample_id in ids for _ in range(targets)],
            "row": pa.array([rows[sample_id] for sample_id in ids for _ in range(targets)], pa.int64()),
            "target": [target["name"] for _ in range(samples) for target in described],
            "kind": [target["kind"] for _ in range(samples) for target in described],
            "score": scores.flatten().tolist(),
        }
    )
