"""How sharply the loss bends: K_ii of every adapted tensor, and the largest eigenvalue. Learning rate free."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.adapted import adapt
from foretune.tasks.inputs.curvature import CurvatureSettings, curvature_operator
from foretune.tasks.inputs.factors import mean_gradients
from foretune.tasks.inputs.handles import ModelHandle, device_lock
from foretune.tasks.loading import AdapterSettings
from foretune.tasks.samples.rows import SubsetRows

if TYPE_CHECKING:
    from foretune.tasks.numerics.quotients import RayleighQuotients


@content_task(version=4)
def curvature(
    draft: Any,
    run: Run,
    rows: SubsetRows,
    gradient: ArtifactRef,
    sharpness: ArtifactRef,
    samples: ArtifactRef | None,
    model: ModelHandle,
    adapter: AdapterSettings,
    seed: int,
    settings: CurvatureSettings,
) -> None:
    """K_ii = g_i.H_ii g_i / g_i.g_i: from the `samples` of the curvature, or by one product per tensor."""
    from foretune.tasks.numerics.quotients import quotients_of, rayleigh_quotients
    from foretune.tasks.numerics.vectors import module_norms

    adapted = adapt(model.open(run), adapter, seed)
    mean = mean_gradients(run.store.open(gradient))
    at: dict[str, Any] = {name: mean[name].to(w.device) for name, w in adapted.weights.items()}
    pulled = adapted.space.pull(at)
    if samples is not None:
        drawn = run.store.open(samples)
        at = {name: g.to(pulled[name].device) for name, g in drawn.tensors("samples.safetensors").items()}
        quotients = quotients_of(at, drawn.json("counts.json")["tokens"], pulled)
    else:
        few = rows.read(run).slice(0, settings.quotient_rows)
        with device_lock(adapted.loaded):
            quotients = rayleigh_quotients(curvature_operator(adapted, few, settings), pulled)
    errors = quotients.standard_errors or {}
    draft.write_table(
        "layers.parquet",
        [
            {"module": name, "K_ii": value, "K_ii_error": errors.get(name), "gradient_norm": norm}
            for (name, value), norm in zip(quotients.values.items(), module_norms(pulled).values(), strict=True)
        ],
    )
    measured = run.store.open(sharpness).json("sharpness.json")
    draft.write_json(
        "summary.json", {**measured, "quotients": quotients.mode, "quotients_error": middle_error(quotients)}
    )


def middle_error(quotients: RayleighQuotients) -> float | None:
    """Median over the tensors of the standard error of K_ii over K_ii; None where it is exact."""
    errors = quotients.standard_errors or {}
    relative = [error / quotients.values[name] for name, error in errors.items() if quotients.values[name] > 0]
    return median(relative) if relative else None
