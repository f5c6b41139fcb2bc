"""The inverse-curvature solve (H + dI)^-1 g of influence: LiSSA, with a preset or a measured scale and depth."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from foretune.storage.events import EventLog
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.invariants import LISSA_WITHIN_BUDGET, BrokenInvariant
from foretune.tasks.engine.keys import without_result
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.adapted import adapt
from foretune.tasks.inputs.curvature import CurvatureSettings, curvature_operator
from foretune.tasks.inputs.field import gradient_field
from foretune.tasks.inputs.handles import ModelHandle, device_lock
from foretune.tasks.loading import AdapterSettings
from foretune.tasks.samples.rows import SubsetRows

if TYPE_CHECKING:
    from torch import Tensor

    from foretune.tasks.numerics.lissa import LissaPlan, Solve
    from foretune.tasks.numerics.spectrum import Matvec

LARGEST_PRODUCTS, TRACE_PROBES = 4, 4  # what `tuned` spends on the eigenvalue and the trace
TUNED_RESIDUAL = 0.05
SCALE_PRODUCTS = 4  # of `numerics.lissa`, where the scale is not given; named here for a plan, which imports no torch


class SolverSettings(BaseModel):
    """The inverse-curvature solve."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="LiSSA")

    version: Literal[1] = 1
    when: Literal["ranking", "always"] = Field(
        default="ranking",
        title="When",
        description="ranking: where influence.method is lissa; always: its scores stand beside those that rank",
        json_schema_extra=without_result(),
    )
    preset: Literal["automatic", "seed", "tuned"] = Field(
        default="automatic",
        title="Preset",
        description="automatic: scale from the largest eigenvalue; seed: scale 25; tuned: also the damping, so that "
        "the iterations converge, and the rows that the curvature sample needs",
    )
    iterations: int = Field(default=10, ge=1, le=100_000, title="Iterations")
    damping: float = Field(default=0.01, gt=0, lt=1, title="Damping", description="effective damping = damping x scale")
    scale: float | None = Field(default=None, gt=0, le=1e30, title="Scale", description="none: what the preset says")
    tolerance: float = Field(default=0.0, ge=0, le=1e6, title="Stop at residual", description="0: use all iterations")
    preconditioner: Literal["none", "adam"] = Field(
        default="none", title="Preconditioner", description="adam: the damping acts in the metric of Adam's step sizes"
    )
    check: bool = Field(
        default=False, title="Check", description="solve by conjugate gradients too and store how far both agree"
    )


def most_products(solver: SolverSettings) -> int:
    """Products with the whole operator that a solve may take."""
    measured = LARGEST_PRODUCTS + TRACE_PROBES
    if solver.preset != "tuned":
        measured = 0 if solver.scale is not None or solver.preset == "seed" else SCALE_PRODUCTS
    return measured + solver.iterations * (2 if solver.check else 1)


@content_task(version=2)
def influence_solve(
    draft: Any,
    run: Run,
    rows: SubsetRows,
    targets: ArtifactRef,
    model: ModelHandle,
    adapter: AdapterSettings,
    seed: int,
    curvature: CurvatureSettings,
    solver: SolverSettings,
    nodes: list[ArtifactRef] | None = None,
    rows_per_step: int | None = None,
) -> None:
    """The first target's direction in adapter coordinates, and the solver's record.

    `nodes` and `rows_per_step` are for the preconditioner alone.
    """
    adapted = adapt(model.open(run), adapter, seed)
    stored = run.store.open(targets).tensor_file("targets.safetensors")
    target = {name: stored.get_slice(name)[0].to(weight.device) for name, weight in adapted.weights.items()}
    roots = None
    if nodes is not None:
        roots = _adam_roots(gradient_field(run, nodes, adapted), adapted.space, rows_per_step or 1)
    with device_lock(adapted.loaded):
        operator = curvature_operator(adapted, rows.read(run), curvature)
        solve, record, budget = solved(operator.matvec, target, solver, EventLog.of(run), roots)
    draft.check(
        LISSA_WITHIN_BUDGET,
        "the solve's iterations with those planned, and its last residual with its first",
        iterations=solve.iterations,
        planned=budget,
        first_residual=solve.residuals[0],
        last_residual=solve.residuals[-1],
    )
    draft.write_tensors("directions.safetensors", {name: u.contiguous() for name, u in solve.solution.items()})
    draft.write_json(
        "solver.json",
        {
            "method": "lissa",
            "preset": solver.preset,
            "preconditioner": solver.preconditioner,
            "residuals": solve.residuals,
            "scale": solve.scale,
            "damping": solve.damping,
            "effective_damping": solve.effective_damping,
            "iterations": solve.iterations,
            "budget": max(solver.iterations, solve.iterations),
            "products": solve.products,
            "status": solve.status,
            "advice": solve.advice,
            "curvature": curvature.curvature,
            "curvature_rows": rows.subset.rows,
            "curvature_tokens": operator.tokens,
            **record,
        },
    )


def solved(
    matvec: Matvec,
    target: dict[str, Tensor],
    settings: SolverSettings,
    events: EventLog,
    roots: dict[str, Tensor] | None = None,
) -> tuple[Solve, dict[str, Any], int]:
    """LiSSA within its budget, and what the record adds to it. BrokenInvariant for a solve that diverged.

    Third is the number of iterations that were planned.
    With `roots` D^1/2 the solve is that of D^1/2 H D^1/2, and its damping that of H + d D^-1. Zero solves for zero.
    """
    from foretune.tasks.numerics.lissa import Solve, conjugate_gradient, lissa
    from foretune.tasks.numerics.vectors import dot, norm

    if norm(target) == 0.0:
        scale, damping = settings.scale or 1.0, settings.damping
        advice = "no adapted weight has a gradient on the target: every score is 0"
        return Solve(target, [0.0], scale, damping, damping * scale, 0, 0, "converged", advice), {}, 0
    products = 0

    def counted(theta: dict[str, Tensor]) -> dict[str, Tensor]:
        nonlocal products
        products += 1
        events.emit("progress", task="influence_solve", done=products, total=None)
        if roots is None:
            return matvec(theta)
        return _times(roots, matvec(_times(roots, theta)))

    right = target if roots is None else _times(roots, target)
    try:
        plan, record = solver_plan(counted, right, settings)
        solve = lissa(counted, right, plan)
    except ValueError as fault:
        raise BrokenInvariant(f"influence: {fault}") from fault
    if solve.iterations > plan.iterations or solve.residuals[-1] > solve.residuals[0]:
        raise BrokenInvariant(
            f"influence: LiSSA used {solve.iterations} of {plan.iterations} iterations and ended at residual "
            f"{solve.residuals[-1]:.3g} after {solve.residuals[0]:.3g}; raise influence.solver.damping"
        )
    if settings.check:
        checked = conjugate_gradient(counted, right, solve.effective_damping, solve.iterations)
        agreement = dot(solve.solution, checked.solution) / (norm(solve.solution) * norm(checked.solution))
        record |= {"conjugate_gradient_residual": checked.residuals[-1], "conjugate_gradient_cosine": agreement}
    moved = solve if roots is None else replace(solve, solution=_times(roots, solve.solution))
    return moved, record, plan.iterations


def solver_plan(matvec: Matvec, right: dict[str, Tensor], settings: SolverSettings) -> tuple[LissaPlan, dict[str, Any]]:
    """The preset as a plan of the solve; `tuned` measures the operator first (arXiv 2409.17357)."""
    from foretune.tasks.numerics.lissa import SEED_SCALE, LissaPlan, tune
    from foretune.tasks.numerics.spectrum import hutchinson_trace, lanczos

    if settings.preset != "tuned":
        scale = settings.scale or (SEED_SCALE if settings.preset == "seed" else None)
        return LissaPlan(settings.iterations, settings.damping, scale, settings.tolerance), {}
    ritz = lanczos(matvec, right, LARGEST_PRODUCTS)
    largest = ritz.values[-1] + ritz.residuals[-1]
    trace = hutchinson_trace(matvec, right, TRACE_PROBES)
    plan = tune(largest, trace.trace, iterations=settings.iterations, tolerance=settings.tolerance or TUNED_RESIDUAL)
    return plan, {
        "largest_eigenvalue": largest,
        "trace": trace.trace,
        "trace_se": trace.standard_error,
        "curvature_rows_needed": plan.rows,
    }


def _adam_roots(field: Any, space: Any, rows_per_step: int) -> dict[str, Tensor]:
    """D^1/2 with D = 1 / sqrt(E[g^2]), scaled to a mean square of 1 so that eigenvalues keep their size."""
    import torch

    from foretune.tasks.numerics.preconditioner import node_moments

    roots = {}
    for name in field.names:
        moments = node_moments(field, space, rows_per_step, name)
        second = moments.mean.square() + moments.variance
        roots[name] = (second.sqrt() + second.mean().sqrt() * 1e-3).rsqrt()
    size = torch.stack([root.square().mean() for root in roots.values()]).mean().sqrt()
    return {name: root / size for name, root in roots.items()}


def _times(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: a[name] * value for name, value in b.items()}
