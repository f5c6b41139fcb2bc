"""The backtest: the same fine-tune really trained, and how far the simulation agrees with it.

The only passes beside the simulation's. `real_run` is the one pass of all in which an optimizer may step.
"""

from __future__ import annotations

from importlib import metadata
from typing import Any

from foretune.storage.cache import scratch_folder
from foretune.storage.errors import BadInput
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.backtest.axes import axes_of
from foretune.tasks.backtest.influence import Halves
from foretune.tasks.backtest.outcomes import HeldOut
from foretune.tasks.backtest.real_runs import evaluated_runs
from foretune.tasks.backtest.signals import came_true
from foretune.tasks.engine.keys import NUMERICS
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.adapted import adapt
from foretune.tasks.inputs.adapter_factors import stored_delta
from foretune.tasks.inputs.handles import ModelHandle, SaeHandle, device_lock
from foretune.tasks.inputs.training import TrainingSettings
from foretune.tasks.inspection.settings import DiffSettings
from foretune.tasks.landscape.signals import SignalThresholds
from foretune.tasks.loading import AdapterSettings
from foretune.tasks.prediction.evaluation import RowsAtWeights
from foretune.tasks.samples.rows import ShardRows, SubsetRows


def trainer_of(dpo_beta: float | None) -> str:
    """The library that trains, and its version where the passes do not depend on it. BadInput where it is missing."""
    if dpo_beta is None:
        return "transformers"
    try:
        return f"trl {metadata.version('trl')}"
    except metadata.PackageNotFoundError:
        raise BadInput("backtest: preference pairs are trained with trl's DPOTrainer; pip install trl") from None


@content_task(version=1, libraries=(*NUMERICS, "peft"), trains=True)
def real_run(
    draft: Any,
    run: Run,
    role: str,
    rows: ShardRows | SubsetRows,
    model: ModelHandle,
    adapter: AdapterSettings,
    training: TrainingSettings,
    dpo_beta: float | None,
    order: int,
    trainer: str,
    thresholds: SignalThresholds,
) -> None:
    """Train for real: merged weight changes {name: [out, in]} after the first step and at the end, steps, signals.

    `order` seeds the order of the rows; `role` is what the run is called.
    """
    from foretune.tasks.backtest.callback import TrainingEvents
    from foretune.tasks.backtest.real_run import train

    loaded, table = model.open(run), rows.read(run)
    events = TrainingEvents(run.root, thresholds=thresholds, within=run, task="real_run")
    with device_lock(loaded), scratch_folder() as folder:
        real = train(loaded, table, adapter, training, dpo_beta, folder=folder, seed=order, callbacks=[events])
    draft.write_tensors("delta.safetensors", {name: d.contiguous() for name, d in real.delta.items()})
    draft.write_tensors("first_step.safetensors", {name: d.contiguous() for name, d in real.first_step.items()})
    draft.write_table("steps.parquet", [{"step": n, **step} for n, step in enumerate(events.steps, start=1)])
    draft.write_table("layers.parquet", events.layers)
    draft.write_json(
        "record.json",
        {
            "role": role,
            "order": order,
            "steps": real.steps,
            "rows": real.rows,
            "seconds": real.seconds,
            "losses": real.losses,
            "signals": events.signals,
        },
    )


@content_task(version=2, libraries=(*NUMERICS, "sae-lens"))
def agreement(
    draft: Any,
    run: Run,
    prediction: ArtifactRef,
    landscape: ArtifactRef,
    influence: ArtifactRef,
    seeds: list[int],
    real: list[ArtifactRef],
    halves: list[ArtifactRef],
    half_rows: list[SubsetRows],
    retrain: int,
    heldout: ShardRows,
    evaluation: SubsetRows,
    compared: SubsetRows,
    model: ModelHandle,
    sae: SaeHandle | None,
    adapter: AdapterSettings,
    training: TrainingSettings,
    dpo_beta: float | None,
    settings: DiffSettings,
) -> None:
    """The simulation, the real runs' first steps, and the real runs among themselves, on six axes."""
    store = run.store
    adapted = adapt(model.open(run), adapter, training.seed)
    with device_lock(adapted.loaded):
        rows = HeldOut(adapted, heldout.read(run), dpo_beta, sae and sae.open(), compared.read(run), settings)
        on_path = RowsAtWeights(adapted, evaluation.read(run), dpo_beta, settings.batch_tokens)
        predicted = rows.outcome(stored_delta(store.open(prediction)))
        runs = evaluated_runs(run, real, rows, on_path, training)
        losses = [rows.loss(store.open(half).tensors("delta.safetensors")) for half in halves]
    figures = runs.compared_with(predicted, rows.base_loss)
    half_runs = Halves.of(run, influence, half_rows, losses)
    simulated = store.open(prediction).json("summary.json")
    axes = axes_of(
        figures.of_prediction,
        figures.of_first,
        figures.of_reruns,
        half_runs.ranking,
        retrain,
        sae is not None,
        half_runs.other_target,
    )
    draft.write_json(
        "agreement.json",
        {
            "seeds": seeds,
            "axes": axes,
            "runs": runs.described(seeds, figures.of_prediction),
            "heldout_loss_base": rows.base_loss,
            "heldout_loss_predicted": predicted.loss,
            "gradient_samples_used": simulated["gradient_samples_used"],
            "gradient_samples_real": simulated["gradient_samples_real"],
            "influence": half_runs.ranking,
            "halves": half_runs.described(),
            "signals": came_true(
                store.open(landscape).json("summary.json"), simulated, runs.records, runs.dead, runs.path_losses
            ),
        },
    )
