"""What a run has stored from which other settings are predicted."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.keys import identity
from foretune.tasks.inputs.factors import mean_gradients
from foretune.tasks.inputs.field import stored_field, stored_rows
from foretune.tasks.inputs.training import TrainingSettings
from foretune.tasks.loading import AdapterSettings, lora_init
from foretune.tasks.prediction.horizon import last_trusted
from foretune.tasks.prediction.measured_path import MeasuredPath
from foretune.tasks.prediction.outcome import Outcome, Setting, own_answer
from foretune.tasks.prediction.virtual_run import VirtualRun

if TYPE_CHECKING:
    from foretune.tasks.numerics.field import GradientField
    from foretune.tasks.numerics.row_gradients import RowGradients


@dataclass(frozen=True)
class StoredGradients:
    """The artefacts of a run from which other settings are predicted."""

    run: Run
    field: GradientField
    row_gradients: RowGradients | None  # None where they are not stored
    shapes: dict[str, tuple[int, ...]]  # [out, in] of the measured weights, in the model's order
    heldout: dict[str, Any]  # gradient of the held-out loss at the base weights
    base_loss: float
    trusted_distance: float  # |delta| up to which the run's own path agreed with forward passes
    weight_norms: dict[str, float] = dataclasses.field(repr=False)
    everything: bool  # whether all linear modules were measured
    own: Setting  # the run's own, nothing changed
    own_outcome: Outcome
    dtype: str = "float32"  # of the model: peft rounds A to it
    paired: bool = False  # a DPO run
    path: MeasuredPath | None = None  # None where only base gradients were measured

    @classmethod
    def of(
        cls,
        run: Run,
        nodes: list[ArtifactRef],
        heldout_gradient: ArtifactRef,
        prediction: ArtifactRef,
        path: ArtifactRef | None,
        adapter: AdapterSettings,
        training: TrainingSettings,
        tolerance: float,
        dtype: str,
        paired: bool,
    ) -> StoredGradients:
        """`adapter` and `training` are the run's own: its per-row gradients are stored in their coordinates."""
        import torch

        from foretune.tasks.numerics.replay import FullAdapter

        predicted = run.store.open(prediction)
        names = tuple(run.store.open(nodes[0]).json("shard.json")["modules"])
        field, own = stored_field(run, nodes, names), Setting({}, adapter, training)
        shapes = {name: tuple(field.read(0, name).shape) for name in names}
        rows = None
        if adapter.method == "lora":
            rows = stored_rows(run, nodes, lora_init(shapes, adapter, training.seed, getattr(torch, dtype)))
        points = predicted.arrow("single_anchor.parquet").to_pylist()
        layers = predicted.arrow("layers.parquet", columns=["module", "weight_norm"]).to_pylist()
        heldout: dict[str, Any] = mean_gradients(run.store.open(heldout_gradient))
        measured = None
        if path is not None:
            outlines = {name: torch.empty(0) for name in names}  # of a run that is not replayed, only its schedule
            virtual = VirtualRun(FullAdapter(outlines), field, training, training.steps(sum(field.rows)))
            along = predicted.arrow("path.parquet").to_pylist()
            measured = MeasuredPath.of(run, path, along, virtual, heldout, tolerance)
        return cls(
            run=run,
            field=field,
            row_gradients=rows,
            shapes=shapes,
            heldout=heldout,
            base_loss=points[0]["evaluated_loss"],
            trusted_distance=trusted_distance(points, tolerance),
            weight_norms={row["module"]: row["weight_norm"] for row in layers},
            everything=isinstance(adapter.target_modules, str),
            own=own,
            own_outcome=own_answer(predicted),
            dtype=dtype,
            paired=paired,
            path=measured,
        )

    def is_own(self, setting: Setting) -> bool:
        """Whether a setting is what the run itself was predicted with."""
        return all(identity(getattr(setting, n)) == identity(getattr(self.own, n)) for n in ("adapter", "training"))


def trusted_distance(points: list[dict[str, Any]], tolerance: float) -> float:
    """|delta| at the last evaluation of a path before its prediction diverges by more than `tolerance` nats."""
    trusted = last_trusted(points, tolerance)
    return trusted["distance"] if trusted else 0.0
