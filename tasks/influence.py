"""Pass 2b: what every sample does to the held-out loss. One solve, then one pass over all samples.

score_i = -<u, d loss_i / d theta> / tokens, in nats of held-out loss: negative helps, positive harms.
`lissa`: u = (H + dI)^-1 g_heldout. `preconditioned`: u = sum of learning rates x g_heldout / (sqrt(E[g^2]) + eps),
the first-order effect through AdamW's own normalisation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from storage.artifacts import ArtifactRef
from storage.events import EventLog
from storage.runs import Run
from tasks.adapted import AdaptedModel, CurvatureSettings, adapt, curvature_operator, gradient_field
from tasks.invariants import BrokenInvariant
from tasks.keys import content_task, without_result
from tasks.loading import AdapterSettings
from tasks.minibatches import Minibatch, minibatches
from tasks.model import ModelHandle, exclusive
from tasks.rows import ShardRows, SubsetRows
from tasks.training import Schedule

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.numerics.batches import Batch
    from tasks.numerics.lissa import Solve

METHODS = ("lissa", "preconditioned")


class SolverSettings(BaseModel):
    """The inverse-curvature solve."""

    model_config = ConfigDict(extra="forbid", title="LiSSA")

    version: Literal[1] = 1
    iterations: int = Field(10, ge=1, title="Iterations")
    damping: float = Field(0.01, gt=0, lt=1, title="Damping", description="effective damping = damping x scale")
    scale: float | None = Field(None, gt=0, title="Scale", description="none: from the largest eigenvalue")
    tolerance: float = Field(0.0, ge=0, title="Stop at residual", description="0: use all iterations")


class ScoringSettings(BaseModel):
    """How the pass over all samples is run."""

    model_config = ConfigDict(extra="forbid", title="Scoring pass")

    version: Literal[1] = 1
    batch_tokens: int = Field(1024, ge=1, title="Tokens per micro-batch", json_schema_extra=without_result())


class InfluenceSettings(BaseModel):
    """Which score ranks the samples, and how they are read."""

    model_config = ConfigDict(extra="forbid", title="Influence")

    version: Literal[1] = 1
    method: Literal["lissa", "preconditioned"] = Field("lissa", title="Ranking score")
    solver: SolverSettings = Field(SolverSettings(), title="LiSSA solver")
    neutral: float = Field(0.1, ge=0, title="Neutral below", description="share of the scores' standard deviation")
    scoring: ScoringSettings = Field(ScoringSettings(), title="Pass over all samples")


@content_task(version=1)
def influence_solve(
    draft: Any,
    run: Run,
    rows: SubsetRows,
    nodes: list[ArtifactRef],
    heldout_gradient: ArtifactRef,
    model: ModelHandle,
    adapter: AdapterSettings,
    seed: int,
    rows_per_step: int,
    adam_epsilon: float,
    curvature: CurvatureSettings,
    solver: SolverSettings,
) -> None:
    """Both directions u in adapter coordinates, and the solver's record."""
    from tasks.numerics.preconditioner import adam_direction, second_moment

    adapted = adapt(model.open(run), adapter, seed)
    mean = run.store.open(heldout_gradient).tensors("gradients.safetensors")
    target = adapted.space.pull({name: mean[name].to(w.device) for name, w in adapted.weights.items()})
    with exclusive(adapted.loaded):
        operator = curvature_operator(adapted, rows.read(run), curvature)
        solve = solved(operator.matvec, target, solver, EventLog.of(run))
    moments = second_moment(gradient_field(run, nodes, adapted), adapted.space, rows_per_step)
    directions = {"lissa": solve.solution, "preconditioned": adam_direction(target, moments, adam_epsilon)}
    draft.write_tensors(
        "directions.safetensors",
        {f"{method}/{name}": u.contiguous() for method, theta in directions.items() for name, u in theta.items()},
    )
    draft.write_json(
        "solver.json",
        {
            "method": "lissa",
            "residuals": solve.residuals,
            "scale": solve.scale,
            "damping": solve.damping,
            "effective_damping": solve.effective_damping,
            "iterations": solve.iterations,
            "budget": solver.iterations,
            "products": solve.products,
            "status": solve.status,
            "advice": solve.advice,
            "curvature": curvature.curvature,
            "curvature_rows": rows.subset.rows,
            "curvature_tokens": operator.tokens,
        },
    )


def solved(matvec: Any, target: dict[str, Tensor], settings: SolverSettings, events: EventLog) -> Solve:
    """LiSSA within its budget; a diverged solve breaks the run, it never ranks. Zero solves for zero."""
    from tasks.numerics.lissa import LissaPlan, Solve, lissa
    from tasks.numerics.vectors import norm

    if norm(target) == 0.0:
        scale, damping = settings.scale or 1.0, settings.damping
        advice = "no adapted weight has a gradient on the held-out rows: every score is 0"
        return Solve(target, [0.0], scale, damping, damping * scale, 0, 0, "converged", advice)
    products = 0

    def counted(theta: dict[str, Tensor]) -> dict[str, Tensor]:
        nonlocal products
        products += 1
        events.emit("progress", task="influence_solve", done=products, total=None)
        return matvec(theta)

    plan = LissaPlan(settings.iterations, settings.damping, settings.scale, settings.tolerance)
    try:
        solve = lissa(counted, target, plan)
    except ValueError as fault:
        raise BrokenInvariant(f"influence: {fault}") from fault
    if solve.iterations > settings.iterations or solve.residuals[-1] > solve.residuals[0]:
        raise BrokenInvariant(
            f"influence: LiSSA used {solve.iterations} of {settings.iterations} iterations and ended at residual "
            f"{solve.residuals[-1]:.3g} after {solve.residuals[0]:.3g}; raise influence.solver.damping"
        )
    return solve


@content_task(version=1)
def influence_shard(
    draft: Any,
    run: Run,
    rows: ShardRows,
    solve: ArtifactRef,
    model: ModelHandle,
    adapter: AdapterSettings,
    seed: int,
    dpo_beta: float | None,
    settings: ScoringSettings,
) -> None:
    """Derivative of every sample's summed loss along both directions, from one forward and backward."""
    import torch

    table = rows.read(run)
    adapted = adapt(model.open(run), adapter, seed)
    stored = run.store.open(solve).tensors("directions.safetensors")
    directions = [
        adapted.space.lift({name: stored[f"{method}/{name}"].to(w.device) for name, w in adapted.weights.items()})
        for method in METHODS
    ]
    derivatives = torch.zeros(len(table), len(METHODS), dtype=torch.float64)
    with exclusive(adapted.loaded):
        for minibatch in minibatches(table, settings.batch_tokens, adapted.loaded.device):
            derivatives[list(minibatch.rows)] = directional(adapted, directions, minibatch, dpo_beta).cpu()
    ids = table["sample_id"].to_pylist()
    draft.write_table(
        "derivatives.parquet",
        [
            {"sample_id": sample_id, **dict(zip(METHODS, row, strict=True))}
            for sample_id, row in zip(ids, derivatives.tolist(), strict=True)
        ],
    )


def directional(
    adapted: AdaptedModel, directions: list[dict[str, Tensor]], minibatch: Minibatch, dpo_beta: float | None
) -> Tensor:
    """[b, k] d loss_i along each direction; a DPO pair's is beta/2 (chosen - rejected) at the base weights."""
    import torch

    from tasks.numerics.scoring import sample_derivatives, sample_dots

    def dots(batch: Batch) -> Tensor:
        if adapted.modules is not None:
            return sample_dots(adapted.call, adapted.weights, directions, [batch], adapted.modules)
        columns = [sample_derivatives(adapted.call, adapted.weights, d, [batch]) for d in directions]
        return torch.stack(columns, dim=-1)

    if dpo_beta is None or minibatch.rejected is None:
        return dots(minibatch.batch)
    return dpo_beta / 2 * (dots(minibatch.batch) - dots(minibatch.rejected))


@content_task(version=1, libraries=())
def influence(
    draft: Any,
    run: Run,
    samples: ArtifactRef,
    shards: list[ArtifactRef],
    gradient: ArtifactRef,
    solve: ArtifactRef,
    schedule: Schedule,
    settings: InfluenceSettings,
) -> None:
    """Scores in nats of held-out loss, ranked from the most harmful, with verdicts."""
    known = run.store.open(samples).arrow("samples.parquet", columns=["sample_id", "row"]).to_pylist()
    rows = {sample["sample_id"]: sample["row"] for sample in known}
    counts = run.store.open(gradient).json("counts.json")
    units = {"lissa": 1.0, "preconditioned": rate_sum(schedule, counts["rows"])}
    derivatives = [d for shard in shards for d in run.store.open(shard).arrow("derivatives.parquet").to_pylist()]
    scores = {m: [-units[m] * d[m] / counts["tokens"] for d in derivatives] for m in METHODS}
    ids = [d["sample_id"] for d in derivatives]
    draft.write_table("influence.parquet", ranked(ids, rows, scores, settings.method, settings.neutral))
    draft.write_json("solver.json", run.store.open(solve).json("solver.json"))


def rate_sum(schedule: Schedule, rows: int) -> float:
    """Sum of the learning rates of all optimizer steps."""
    from tasks.numerics.schedules import learning_rates

    steps, warmup = schedule.steps(rows), schedule.warmup_steps(rows)
    return sum(learning_rates(schedule.lr_scheduler_type, schedule.learning_rate, steps, warmup))


def ranked(
    ids: list[str], rows: dict[str, int], scores: dict[str, list[float]], method: str, neutral: float
) -> list[dict[str, Any]]:
    """Rank 1 harms most. `z` is the score over the scores' standard deviation; verdict `neutral` when
    |score| is below `neutral` standard deviations, else `harms` (positive) or `helps` (negative)."""
    chosen = scores[method]
    mean = sum(chosen) / len(chosen)
    spread = (sum((s - mean) ** 2 for s in chosen) / max(len(chosen) - 1, 1)) ** 0.5
    order = sorted(range(len(ids)), key=lambda i: (-chosen[i], ids[i]))
    table = []
    for rank, i in enumerate(order, start=1):
        quiet = abs(chosen[i]) <= neutral * spread
        verdict = "neutral" if quiet else "harms" if chosen[i] > 0 else "helps"
        table.append(
            {
                "sample_id": ids[i],
                "row": rows[ids[i]],
                "score": chosen[i],
                "rank": rank,
                "verdict": verdict,
                "z": (chosen[i] - mean) / spread if spread else 0.0,
                "method": method,
                **{f"{name}_score": values[i] for name, values in scores.items()},
            }
        )
    return table
