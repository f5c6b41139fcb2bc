"""Stored gradients under labels drawn from the model: the curvature along any direction is computed from them."""

from __future__ import annotations

from typing import Any

from foretune.storage.runs import Run
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.adapted import adapt
from foretune.tasks.inputs.curvature import CurvatureSettings, curvature_batches
from foretune.tasks.inputs.handles import ModelHandle, device_lock
from foretune.tasks.loading import AdapterSettings
from foretune.tasks.samples.rows import SubsetRows


@content_task(version=1)
def curvature_samples(
    draft: Any,
    run: Run,
    rows: SubsetRows,
    model: ModelHandle,
    adapter: AdapterSettings,
    seed: int,
    settings: CurvatureSettings,
) -> None:
    """samples.safetensors: {name: [draws, rows, out, r]} bfloat16, rounded without bias in K_ii; counts.json."""
    import torch

    from foretune.tasks.numerics.quotients import sampled_gradients

    adapted = adapt(model.open(run), adapter, seed)
    batches = curvature_batches(adapted, rows.read(run), settings)
    with device_lock(adapted.loaded):
        samples = sampled_gradients(
            adapted.call,
            adapted.weights,
            adapted.space,  # pyright: ignore[reportArgumentType]
            batches,
            adapted.modules,  # pyright: ignore[reportArgumentType]
            settings.quotient_draws,
            seed,
            torch.bfloat16,
        )
    draft.write_tensors("samples.safetensors", samples)
    draft.write_json(
        "counts.json",
        {
            "tokens": sum(batch.label_tokens for batch in batches),
            "rows": rows.subset.rows,
            "draws": settings.quotient_draws,
        },
    )
