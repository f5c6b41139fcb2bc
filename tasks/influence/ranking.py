"""Pass 2b: what every sample does to the held-out loss, or to another target, and what to read from it.

Three scores, each the change of the target that training on the sample causes:
`lissa` -<(H + dI)^-1 g, d loss_i> / tokens; `preconditioned` the same along the derivative of the optimizer's own
expected step, times the learning rates; `replayed` a linear datamodel over the surrogate retrained on random halves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.invariants import LISSA_WITHIN_BUDGET
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.training import Schedule

if TYPE_CHECKING:
    from torch import Tensor

NEAREST = 3  # held-out rows named beside a sample


class RankingSettings(BaseModel):
    """The part of the settings that words a ranking and moves no score."""

    model_config = ConfigDict(extra="forbid")

    method: Literal["auto", "replayed", "preconditioned", "lissa"]
    neutral: float
    outlier: float


@content_task(version=2, libraries=("torch",))
def influence(
    draft: Any,
    run: Run,
    samples: ArtifactRef,
    shards: list[ArtifactRef],
    gradient: ArtifactRef,
    solve: ArtifactRef,
    targets: ArtifactRef,
    schedule: Schedule,
    settings: RankingSettings,
    replays: ArtifactRef | None = None,
) -> None:
    """influence.parquet: ranked from the most harmful; targets.parquet: every further target's score of each sample."""
    known = run.store.open(samples).arrow("samples.parquet", columns=["sample_id", "row"]).to_pylist()
    rows = {sample["sample_id"]: sample["row"] for sample in known}
    described = run.store.open(targets).json("targets.json")
    counts = run.store.open(gradient).json("counts.json")
    ids, scores = sample_scores(run, shards, replays, counts, schedule)
    method = chosen_method(settings.method, scores)
    by_target = scores["lissa" if method == "lissa" else method]
    apart = scores["replayed" if "replayed" in scores else "preconditioned"]
    table = ranked(ids, rows, {name: s[:, 0].tolist() for name, s in scores.items()}, method, described[0], settings)
    nearest = nearest_rows(apart, described)
    place = {sample_id: n for n, sample_id in enumerate(ids)}
    for entry in table:
        entry |= nearest[place[entry["sample_id"]]]
    draft.write_table("influence.parquet", table)
    draft.write_table("targets.parquet", target_table(ids, rows, apart, described))
    draft.write_json("targets.json", described)
    solved = run.store.open(solve)
    draft.checks += [check for check in solved.manifest.checks if check.name == LISSA_WITHIN_BUDGET]
    record = solved.json("solver.json") | {"ranked_by": method, "target": described[0]["name"]}
    record |= {"unit": described[0]["unit"], "spread": spread_of(by_target[:, 0].tolist())[1]}
    if replays is not None:
        record |= {f"replays_{name}": value for name, value in run.store.open(replays).json("replays.json").items()}
    draft.write_json("solver.json", record)


def chosen_method(asked: str, scores: dict[str, Tensor]) -> str:
    """The ranking score: what was asked for where it could be had, else the best there is."""
    best = "replayed" if "replayed" in scores else "preconditioned"
    return asked if asked in scores else best


def sample_scores(
    run: Run, shards: list[ArtifactRef], replays: ArtifactRef | None, counts: dict[str, Any], schedule: Schedule
) -> tuple[list[str], dict[str, Tensor]]:
    """Sample ids, and per method [n, targets] float64 change of every target; `lissa` has the first target alone."""
    import torch

    parts = [run.store.open(shard) for shard in shards]
    ids = [sample_id for part in parts for sample_id in part.json("samples.json")]
    tensors = [part.tensors("derivatives.safetensors") for part in parts]
    tokens = counts["tokens"]
    lissa = torch.cat([t["lissa"] for t in tensors]).unsqueeze(1)
    first_order = torch.cat([t["preconditioned"] for t in tensors])
    scores = {
        "lissa": -lissa / tokens,
        "preconditioned": -rate_sum(schedule, counts["rows"]) / tokens * first_order,
    }
    if replays is not None:
        opened = run.store.open(replays)
        place = {sample_id: n for n, sample_id in enumerate(ids)}
        replayed = torch.zeros_like(first_order)  # a row without a label does nothing
        positions = [place[sample_id] for sample_id in opened.json("samples.json")]
        replayed[positions] = opened.tensors("scores.safetensors")["replayed"] * schedule.learning_rate
        scores["replayed"] = replayed
    return ids, scores


def rate_sum(schedule: Schedule, rows: int) -> float:
    """Sum of the learning rates of all optimizer steps."""
    from foretune.tasks.numerics.schedules import learning_rates

    steps, warmup = schedule.steps(rows), schedule.warmup_steps(rows)
    return sum(learning_rates(schedule.lr_scheduler_type, schedule.learning_rate, steps, warmup))


def spread_of(scores: list[float]) -> tuple[float, float]:
    """Mean and standard deviation."""
    mean = sum(scores) / len(scores)
    return mean, (sum((s - mean) ** 2 for s in scores) / max(len(scores) - 1, 1)) ** 0.5


def ranked(
    ids: list[str],
    rows: dict[str, int],
    scores: dict[str, list[float]],
    method: str,
    target: dict[str, Any],
    settings: RankingSettings,
) -> list[dict[str, Any]]:
    """Rank 1 does most harm to the target, or raises a concept most.

    `z` is the score's distance from the mean in standard deviations, `outlier` says whether it lies beyond
    `settings.outlier`. Verdict `neutral` when |score| is below `settings.neutral` standard deviations; else `harms`
    or `helps`, and for a concept, where neither is better, `raises` or `lowers`.
    """
    chosen = scores[method]
    mean, spread = spread_of(chosen)
    way = -1.0 if target["better"] == "higher" else 1.0
    words = ("raises", "lowers") if target["better"] is None else ("harms", "helps")
    order = sorted(range(len(ids)), key=lambda i: (-way * chosen[i], ids[i]))
    table = []
    for rank, i in enumerate(order, start=1):
        z = (chosen[i] - mean) / spread if spread else 0.0
        quiet = abs(chosen[i]) <= settings.neutral * spread
        table.append(
            {
                "sample_id": ids[i],
                "row": rows[ids[i]],
                "score": chosen[i],
                "rank": rank,
                "verdict": "neutral" if quiet else words[0] if way * chosen[i] > 0 else words[1],
                "z": z,
                "outlier": abs(z) > settings.outlier,
                "method": method,
                **{f"{name}_score": values[i] for name, values in scores.items()},
            }
        )
    return table


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
