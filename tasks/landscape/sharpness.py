"""The largest curvature eigenvalue at the base weights: a property of the curvature sample, whatever the other rows."""

from __future__ import annotations

from typing import Any

from foretune.storage.runs import Run
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.adapted import adapt
from foretune.tasks.inputs.curvature import CurvatureSettings, curvature_operator
from foretune.tasks.inputs.handles import ModelHandle, device_lock
from foretune.tasks.loading import AdapterSettings
from foretune.tasks.samples.rows import SubsetRows


@content_task(version=1)
def sharpness(
    draft: Any,
    run: Run,
    rows: SubsetRows,
    model: ModelHandle,
    adapter: AdapterSettings,
    seed: int,
    settings: CurvatureSettings,
) -> None:
    """sharpness.json: the eigenvalue by power iteration, its residual and history, rows and tokens."""
    from foretune.tasks.numerics.spectrum import power_iteration

    adapted = adapt(model.open(run), adapter, seed)
    table = rows.read(run)
    with device_lock(adapted.loaded):
        operator = curvature_operator(adapted, table, settings)
        spectrum = power_iteration(operator.matvec, operator.zeros(), settings.power_iterations, seed)
    draft.write_json(
        "sharpness.json",
        {
            "sharpness": spectrum.eigenvalue,
            "sharpness_residual": spectrum.residual,
            "sharpness_history": spectrum.history,
            "rows": rows.subset.rows,
            "tokens": operator.tokens,
        },
    )
