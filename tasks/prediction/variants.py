"""Other weights that the predicted run passes or might end at, as LoRA's two factors: points on its way, and its end
with the rows in other orders.

Nothing is measured again: the recursion is advanced over the stored gradients and their shift along the path. How far
the ends of other orders lie apart is what a real run would vary by when it is repeated.
"""

from __future__ import annotations

import dataclasses
from dataclasses import asdict
from typing import Any

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.adapted import adapt
from foretune.tasks.inputs.adapter_factors import write_factors
from foretune.tasks.inputs.handles import ModelHandle, device_lock
from foretune.tasks.inputs.training import TrainingSettings
from foretune.tasks.inputs.variants import Variant
from foretune.tasks.loading import AdapterSettings
from foretune.tasks.prediction.applied import applied_at
from foretune.tasks.prediction.evaluation import RowsAtWeights
from foretune.tasks.prediction.gradient_shifts import TRAIN_SHIFT, stored_shift
from foretune.tasks.prediction.settings import PathSettings
from foretune.tasks.prediction.trajectory import evaluation_steps
from foretune.tasks.prediction.virtual_run import virtual_run
from foretune.tasks.samples.rows import SubsetRows

FURTHER_SEED = 1000
"""Added to the seed of the rows' order, once per further order."""


@content_task(version=1)
def variants(
    draft: Any,
    run: Run,
    nodes: list[ArtifactRef],
    path: ArtifactRef,
    model: ModelHandle,
    adapter: AdapterSettings,
    training: TrainingSettings,
    dpo_beta: float | None,
    evaluation: SubsetRows,
    waypoints: int,
    orders: int,
    max_relative_change: float,
    settings: PathSettings,
) -> None:
    """Up to `waypoints` evenly spaced steps before the end, and the end of `orders` further orders of the rows, each
    bounded as the prediction is, with its held-out loss: variants.json, and a file of factors each."""
    adapted = adapt(model.open(run), adapter, training.seed)
    virtual = virtual_run(run, nodes, adapted, training, paired=dpo_beta is not None)
    end, shift = virtual.steps, stored_shift(run.store.open(path), TRAIN_SHIFT, adapted.loaded.device)
    ways = [step for step in evaluation_steps(end, waypoints + 1) if step < end] if waypoints else []
    seeds = [training.seed + FURTHER_SEED * (number + 1) for number in range(orders)]
    kept: list[Variant] = []
    heldout = RowsAtWeights(adapted, evaluation.read(run), dpo_beta, settings.batch_tokens)
    for seed, steps in [(training.seed, ways), *((seed, [end]) for seed in seeds)]:
        if not steps:
            continue
        reordered = dataclasses.replace(virtual, training=training.model_copy(update={"seed": seed}))
        replay = reordered.replayed(steps, shift)
        for step in steps:
            applied = applied_at(replay, step, adapted.weights, max_relative_change)
            with device_lock(adapted.loaded):
                loss = heldout.loss(applied.delta)
            variant = Variant("waypoint" if seed == training.seed else "order", step, seed, loss)
            write_factors(draft, applied.factors, variant.file)
            kept.append(variant)
    draft.write_json("variants.json", {"variants": [asdict(variant) for variant in kept], "end": end})
