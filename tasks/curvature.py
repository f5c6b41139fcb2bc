"""How sharply the loss bends: K_ii of every adapted tensor, and the largest eigenvalue. Learning rate free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from storage.refs import ArtifactRef
from storage.runs import Run
from tasks.adapted import AdaptedModel, CurvatureSettings, adapt, curvature_batches, curvature_operator
from tasks.keys import content_task
from tasks.loading import AdapterSettings
from tasks.model import ModelHandle, exclusive
from tasks.rows import SubsetRows

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from tasks.numerics.quotients import RayleighQuotients


@content_task(version=2)
def curvature(
    draft: Any,
    run: Run,
    rows: SubsetRows,
    gradient: ArtifactRef,
    sharpness: ArtifactRef,
    model: ModelHandle,
    adapter: AdapterSettings,
    seed: int,
    settings: CurvatureSettings,
) -> None:
    """K_ii = g_i.H_ii g_i / g_i.g_i by one product per tensor; the sharpness beside it."""
    from tasks.numerics.vectors import module_norms

    adapted = adapt(model.open(run), adapter, seed)
    mean = run.store.open(gradient).tensors("gradients.safetensors")
    pulled = adapted.space.pull({name: mean[name].to(w.device) for name, w in adapted.weights.items()})
    table = rows.read(run)
    with exclusive(adapted.loaded):
        quotients = tensor_quotients(adapted, pulled, table, seed, settings)
    errors = quotients.standard_errors or {}
    draft.write_table(
        "layers.parquet",
        [
            {"module": name, "K_ii": value, "K_ii_error": errors.get(name), "gradient_norm": norm}
            for (name, value), norm in zip(quotients.values.items(), module_norms(pulled).values(), strict=True)
        ],
    )
    measured = run.store.open(sharpness).json("sharpness.json")
    draft.write_json("summary.json", {**measured, "quotients": settings.quotients})


def tensor_quotients(
    adapted: AdaptedModel,
    gradient: dict[str, Tensor],
    table: pa.Table,
    seed: int,
    settings: CurvatureSettings,
) -> RayleighQuotients:
    """K_ii of every adapted tensor: by one product each over a few rows, or sampled for all at once over all rows."""
    from tasks.numerics.quotients import rayleigh_quotients, sampled_rayleigh_quotients

    if settings.quotients == "exact":
        operator = curvature_operator(adapted, table.slice(0, settings.quotient_rows), settings)
        return rayleigh_quotients(operator, gradient)
    batches = curvature_batches(adapted, table, settings)
    return sampled_rayleigh_quotients(
        adapted.call, adapted.weights, adapted.space, batches, gradient, adapted.modules, seed=seed
    )
