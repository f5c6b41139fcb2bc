"""The backtest: the same fine-tune really trained, and how far the simulation agrees with it.

The only passes beside the simulation's. `real_run` is the one pass of all in which an optimizer may step.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from foretune.storage.errors import BadInput
from foretune.storage.events import EventLog
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.backtest.axes import axes_of
from foretune.tasks.backtest.influence import datamodeling, number, summed
from foretune.tasks.backtest.outcomes import HeldOut, drawn_out
from foretune.tasks.backtest.signals import came_true, dead_modules
from foretune.tasks.engine.keys import NUMERICS
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.adapted import adapt
from foretune.tasks.inputs.handles import ModelHandle, SaeHandle, exclusive
from foretune.tasks.inputs.training import TrainingSettings
from foretune.tasks.inspection.settings import DiffSettings
from foretune.tasks.landscape.landscape import SignalThresholds
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
    with exclusive(loaded), tempfile.TemporaryDirectory() as folder:
        real = train(loaded, table, adapter, training, dpo_beta, folder=Path(folder), seed=order, callbacks=[events])
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
    from itertools import permutations

    from foretune.tasks.numerics.agreement import agreement as figures

    store, events = run.store, EventLog.of(run)
    adapted = adapt(model.open(run), adapter, training.seed)
    opened = [store.open(ref) for ref in real]
    records = [artifact.json("record.json") for artifact in opened]
    simulated = store.open(prediction).json("summary.json")
    with exclusive(adapted.loaded):
        rows = HeldOut(adapted, heldout.read(run), dpo_beta, sae and sae.open(), compared.read(run), settings)
        predicted = rows.outcome(store.open(prediction).tensors("delta.safetensors"))
        truths, firsts, checked = [], [], []
        on_path = RowsAtWeights(adapted, evaluation.read(run), dpo_beta, settings.batch_tokens)
        for done, (artifact, record) in enumerate(zip(opened, records, strict=True), start=1):
            delta = artifact.tensors("delta.safetensors")
            truths.append(rows.outcome(delta))
            checked.append(on_path.loss(delta))
            straight = drawn_out(artifact.tensors("first_step.safetensors"), training, record)
            firsts.append(straight and rows.outcome(straight))
            events.emit("progress", task="agreement", done=done, total=len(real))
        losses = [rows.loss(store.open(half).tensors("delta.safetensors")) for half in halves]
    of_prediction = [figures(predicted, truth, rows.base_loss) for truth in truths]
    of_first = [
        figures(first, truth, rows.base_loss) for first, truth in zip(firsts, truths, strict=True) if first is not None
    ]
    of_reruns = [figures(a, b, rows.base_loss) for a, b in permutations(truths, 2)]
    scored = store.open(influence).arrow("influence.parquet").to_pylist()
    kept = [half.subset.ids for half in half_rows]
    target = store.open(influence).json("targets.json")[0]
    of_loss = target["better"] == "lower"  # what the halves' held-out loss can be held against
    ranking = datamodeling(scored, kept, losses) if of_loss else None
    measured = store.open(landscape).json("summary.json")
    dead = [dead_modules(artifact.arrow("layers.parquet").to_pylist()) for artifact in opened]
    draft.write_json(
        "agreement.json",
        {
            "seeds": seeds,
            "axes": axes_of(
                of_prediction,
                of_first,
                of_reruns,
                ranking,
                retrain,
                sae is not None,
                None if of_loss else target["name"],
            ),
            "runs": [
                {"seed": seed, **_kept(record), "heldout_loss": truth.loss, **_numbers(figure)}
                for seed, record, truth, figure in zip(seeds, records, truths, of_prediction, strict=True)
            ],
            "heldout_loss_base": rows.base_loss,
            "heldout_loss_predicted": predicted.loss,
            "gradient_samples_used": simulated["gradient_samples_used"],
            "gradient_samples_real": simulated["gradient_samples_real"],
            "influence": ranking,
            "halves": [
                {"rows": len(ids), "heldout_loss": loss, "summed_influence": total}
                for ids, loss, total in zip(kept, losses, summed(scored, kept, scored[0]["method"]), strict=True)
            ],
            "signals": came_true(measured, simulated, records, dead, checked),
        },
    )


def _numbers(figures: Any) -> dict[str, float | None]:
    return {name: None if value is None else number(value) for name, value in asdict(figures).items()}


def _kept(record: dict[str, Any]) -> dict[str, Any]:
    return {name: record[name] for name in ("steps", "rows", "seconds")}
