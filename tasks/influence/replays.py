"""Influence by retraining the surrogate: the run replayed over the per-row gradients of many random halves."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.field import per_row_gradients
from foretune.tasks.inputs.sample_values import SampleValues
from foretune.tasks.inputs.training import TrainingSettings
from foretune.tasks.loading import AdapterSettings, lora_scale


class ReplaySettings(BaseModel):
    """How often, and for how long, the surrogate is retrained."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="Replays")

    version: Literal[1] = 1
    runs: int = Field(
        default=1024,
        ge=8,
        le=1_000_000,
        title="Replays",
        description="random halves of the rows, each in an order of its own",
    )
    steps: int = Field(
        default=64, ge=1, le=1_000_000, title="Longest replay", description="steps; in whole epochs, at least one"
    )
    coordinates: float = Field(
        default=0.25,
        gt=0,
        le=1,
        title="Share of the coordinates",
        description="of the adapter's, drawn anew for each sixteenth of the replays: more replays over fewer of them "
        "foretell more than all of them over fewer replays",
    )


@content_task(version=4, libraries=("torch",))
def influence_replays(
    draft: Any,
    run: Run,
    nodes: list[ArtifactRef],
    targets: ArtifactRef,
    shards: list[ArtifactRef],
    adapter: AdapterSettings,
    training: TrainingSettings,
    settings: ReplaySettings,
) -> None:
    """scores.safetensors: `replayed` and `replayed_error`, its standard error, [n, targets], per unit of peak learning
    rate, of every row with a label.

    `training.learning_rate` is not read: the recursion over a frozen field is linear in it.
    """
    from foretune.tasks.numerics import datamodel
    from foretune.tasks.numerics.half_runs import half_runs
    from foretune.tasks.numerics.schedules import learning_rates

    kept = per_row_gradients(run, nodes, lora_scale(adapter))
    assert kept is not None  # of one block at least
    derivatives = SampleValues.read(run, shards, "derivatives.safetensors", "preconditioned").of(kept.ids)
    stored = run.store.open(targets).tensor_file("targets.safetensors")
    rows, per_step = len(kept.ids), training.rows_per_step
    steps_per_epoch = math.ceil((rows // 2) / per_step)
    epochs = max(1, min(math.ceil(training.epochs), settings.steps // steps_per_epoch))

    def rates(steps: int) -> list[float]:
        warmup = math.ceil(steps * training.warmup_steps(rows) / training.steps(rows))
        return learning_rates(training.lr_scheduler_type, 1.0, steps, warmup)

    runs = half_runs(rows, per_step, epochs, settings.runs, training.seed, rates)
    optimizer = training.optimizer_settings()
    changes = datamodel.replayed_changes(
        kept.block,
        kept.names,
        kept.tokens,
        lambda name: stored.get_tensor(name).flatten(1),
        runs,
        optimizer,
        settings.coordinates,
        training.seed,
    )
    first_order = datamodel.first_order(derivatives, kept.tokens, runs, optimizer.betas[0])
    fitted = datamodel.fit_datamodel(runs.inclusion(rows), changes, first_order)
    longer = training.epochs / epochs
    scores = {"replayed": fitted.scores * longer, "replayed_error": fitted.errors * longer}
    draft.write_tensors("scores.safetensors", {name: values.contiguous() for name, values in scores.items()})
    draft.write_json("samples.json", kept.ids)
    draft.write_json(
        "replays.json",
        {
            "runs": settings.runs,
            "steps": len(runs.rates),
            "rows_each": rows // 2,
            "coordinates": settings.coordinates,
            "explained_by_first_order": float(fitted.explained[0]),
            "ridge": float(fitted.ridge[0]),
        },
    )
