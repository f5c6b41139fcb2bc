"""How sharply the loss bends: K_ii of every adapted tensor, and the largest eigenvalue. Learning rate free."""

from __future__ import annotations

from typing import Any

from storage.artifacts import ArtifactRef
from storage.runs import Run
from tasks.adapted import CurvatureSettings, adapt, curvature_operator
from tasks.keys import content_task
from tasks.loading import AdapterSettings
from tasks.model import ModelHandle, exclusive
from tasks.rows import SubsetRows


@content_task(version=1)
def curvature(
    draft: Any,
    run: Run,
    rows: SubsetRows,
    landscape: ArtifactRef,
    model: ModelHandle,
    adapter: AdapterSettings,
    seed: int,
    settings: CurvatureSettings,
) -> None:
    """K_ii = g_i.H_ii g_i / g_i.g_i by one product per tensor; sharpness by power iteration."""
    from tasks.numerics.spectrum import power_iteration
    from tasks.numerics.vectors import dot

    adapted = adapt(model.open(run), adapter, seed)
    mean = run.store.open(landscape).tensors("gradients.safetensors")
    gradient = adapted.space.pull({name: mean[name].to(w.device) for name, w in adapted.weights.items()})
    with exclusive(adapted.loaded):
        operator = curvature_operator(adapted, rows.read(run), settings)
        forms = operator.blocks(gradient)
        spectrum = power_iteration(operator.matvec, operator.zeros(), settings.power_iterations, seed)
    squares = {name: dot({name: g}, {name: g}) for name, g in gradient.items()}
    draft.write_table(
        "layers.parquet",
        [
            {
                "module": name,
                "K_ii": form / squares[name] if squares[name] else 0.0,
                "gradient_norm": squares[name] ** 0.5,
            }
            for name, form in forms.items()
        ],
    )
    draft.write_json(
        "summary.json",
        {
            "sharpness": spectrum.eigenvalue,
            "sharpness_residual": spectrum.residual,
            "sharpness_history": spectrum.history,
            "rows": rows.subset.rows,
            "tokens": operator.tokens,
        },
    )
