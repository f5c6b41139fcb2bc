"""Other settings predicted from the gradients that a run has stored: no gradient is measured, no model opened.

The loss is the first-order one, from the gradients at the base weights. It is trusted up to the distance from the
base weights at which the run's own path over base gradients alone still agreed with forward passes.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foretune.storage.errors import BadInput
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.inputs.field import stored_field, stored_rows
from foretune.tasks.inputs.training import TrainingSettings
from foretune.tasks.loading import AdapterSettings, lora_init, lora_scale
from foretune.tasks.prediction.horizon import last_trusted, trust_in_words
from foretune.tasks.prediction.settings import PredictionSettings
from foretune.tasks.prediction.trajectory import evaluation_steps, inner
from foretune.tasks.prediction.virtual_run import VirtualRun

if TYPE_CHECKING:
    from torch import Tensor

    from foretune.tasks.numerics.field import GradientField
    from foretune.tasks.numerics.replay import Adapter
    from foretune.tasks.numerics.row_gradients import RowGradients
    from foretune.tasks.numerics.sweep import Swept

REACH = 1e-6
"""Relative rounding: a setting that repeats the run ends exactly at the distance up to which the run was trusted."""


@dataclass(frozen=True)
class Setting:
    """One point of the grid."""

    changed: dict[str, Any]  # dotted path -> value
    adapter: AdapterSettings
    training: TrainingSettings


@dataclass(frozen=True)
class Outcome:
    """The result of a setting; `evaluated_loss` only where forward passes were requested."""

    changed: dict[str, Any]
    steps: int
    status: str  # "whole run", "up to step N of M", or why the recursion ended
    trusted_steps: int
    predicted_loss: float | None  # held-out, nats per label token, after the last step; None where it diverges
    trusted_loss: float | None  # the same at the last evaluation step that is trusted
    evaluated_loss: float | None
    largest_movement: float | None  # norm of a module's delta over the norm of its weight
    largest_module: str | None
    best: bool = False

    @property
    def trusted(self) -> bool:
        return self.trusted_steps == self.steps


@dataclass(frozen=True)
class StoredGradients:
    """The artefacts of a run from which other settings are predicted."""

    run: Run
    field: GradientField
    row_gradients: RowGradients | None  # None where they are not stored
    shapes: dict[str, tuple[int, int]]  # [out, in] of the measured weights, in the model's order
    heldout: dict[str, Tensor]  # gradient of the held-out loss at the base weights
    base_loss: float
    trusted_distance: float  # |delta| up to which the run's own path agreed with forward passes
    weight_norms: dict[str, float] = dataclasses.field(repr=False)
    everything: bool  # whether all linear modules were measured
    dtype: str = "float32"  # of the model: peft rounds A to it
    paired: bool = False  # a DPO run

    @classmethod
    def of(
        cls,
        run: Run,
        nodes: list[ArtifactRef],
        heldout_gradient: ArtifactRef,
        prediction: ArtifactRef,
        adapter: AdapterSettings,
        training: TrainingSettings,
        tolerance: float,
        dtype: str,
        paired: bool,
    ) -> StoredGradients:
        """`adapter` and `training` are the run's own: its per-row gradients are stored in their coordinates."""
        import torch

        predicted = run.store.open(prediction)
        names = tuple(run.store.open(nodes[0]).json("shard.json")["modules"])
        first = run.store.open(nodes[0]).tensor_file("gradients.safetensors")
        shapes = {name: tuple(first.get_slice(name).get_shape()) for name in names}
        rows = None
        if adapter.method == "lora":
            rows = stored_rows(run, nodes, lora_init(shapes, adapter, training.seed, getattr(torch, dtype)))
        points = predicted.arrow("single_anchor.parquet").to_pylist()
        layers = predicted.arrow("layers.parquet", columns=["module", "weight_norm"]).to_pylist()
        return cls(
            run=run,
            field=stored_field(run, nodes, names),
            row_gradients=rows,
            shapes=shapes,
            heldout=run.store.open(heldout_gradient).tensors("gradients.safetensors"),
            base_loss=points[0]["evaluated_loss"],
            trusted_distance=trusted_distance(points, tolerance),
            weight_norms={row["module"]: row["weight_norm"] for row in layers},
            everything=isinstance(adapter.target_modules, str),
            dtype=dtype,
            paired=paired,
        )


def trusted_distance(points: list[dict[str, Any]], tolerance: float) -> float:
    """|delta| at the last evaluation of a path before its prediction diverges by more than `tolerance` nats."""
    trusted = last_trusted(points, tolerance)
    return trusted["distance"] if trusted else 0.0


def predicted_outcomes(
    stored: StoredGradients, settings: list[Setting], prediction: PredictionSettings, evaluate: Any = None
) -> list[Outcome]:
    """One outcome per setting, the best one marked.

    Settings that share their batches are replayed side by side. `evaluate(setting, delta)` gives the held-out loss
    by forward passes; with it the horizon and the best setting are the evaluated ones.
    """
    outcomes: list[Outcome | None] = [None] * len(settings)
    groups: dict[tuple[int, int, int], list[int]] = {}
    for number, setting in enumerate(settings):
        training = setting.training
        alone = number if setting.adapter.method == "full" else -1  # its deltas are as large as the model
        key = (training.batch_size, training.gradient_accumulation_steps, alone)
        groups.setdefault(key, []).append(number)
    for numbers in groups.values():
        for number, swept in zip(numbers, _replayed(stored, [settings[n] for n in numbers], prediction), strict=True):
            outcomes[number] = _outcome(stored, settings[number], swept, prediction, evaluate)
    return marked([outcome for outcome in outcomes if outcome is not None])


def _replayed(stored: StoredGradients, settings: list[Setting], prediction: PredictionSettings) -> list[Swept]:
    from foretune.tasks.numerics.sweep import Member, sweep

    field, rows = stored.field, sum(stored.field.rows)
    runs = [
        VirtualRun(_adapter(stored, s), field, s.training, s.training.steps(rows), stored.row_gradients, stored.paired)
        for s in settings
    ]
    points = 1 if settings[0].adapter.method == "full" else prediction.path_points
    members = [
        Member(v.adapter, v.training.optimizer_settings(), v.rates, evaluation_steps(v.steps, points)) for v in runs
    ]
    longest = max(runs, key=lambda virtual: virtual.steps)
    return sweep(longest.batches().gradient, stored.field.names, members)


def _adapter(stored: StoredGradients, setting: Setting) -> Adapter:
    import torch

    from foretune.tasks.numerics.replay import FullAdapter, LoraAdapter

    adapter = setting.adapter
    if adapter.method == "full":
        if setting.training.weight_decay:
            raise BadInput("training.weight_decay of a full fine-tune pulls at the weights; simulate it instead")
        return FullAdapter({name: torch.zeros(shape) for name, shape in stored.shapes.items()})
    shapes = {name: stored.shapes[name] for name in adapted_names(stored.shapes, adapter, stored.everything)}
    outputs = {name: shape[0] for name, shape in shapes.items()}
    initial = lora_init(shapes, adapter, setting.training.seed, getattr(torch, stored.dtype))
    return LoraAdapter(initial, lora_scale(adapter), outputs)


def adapted_names(measured: dict[str, Any], adapter: AdapterSettings, everything: bool) -> list[str]:
    """The measured weights that these target modules name; `everything` says that all-linear was measured.

    BadInput for a target that was not.
    """
    targets = adapter.target_modules
    if isinstance(targets, str):
        if not everything:
            raise BadInput(f"adapter.target_modules: the run did not measure {targets}; simulate it")
        return list(measured)
    modules = {name: f".{name.removesuffix('.weight')}" for name in measured}
    for target in targets:
        if not any(module.endswith(f".{target}") for module in modules.values()):
            kinds = sorted({module.rsplit(".", 1)[-1] for module in modules.values()})
            raise BadInput(
                f"adapter.target_modules: {target} has no stored gradients; the run measured {', '.join(kinds)}"
            )
    return [n for n, module in modules.items() if any(module.endswith(f".{target}") for target in targets)]


def _outcome(
    stored: StoredGradients, setting: Setting, swept: Swept, prediction: PredictionSettings, evaluate: Any
) -> Outcome:
    steps = setting.training.steps(sum(stored.field.rows))
    if swept.fault is not None:
        return Outcome(setting.changed, steps, f"diverges: {swept.fault}", 0, None, None, None, None, None)
    losses, evaluated, final = {}, {}, {}
    for step in sorted(swept.snapshots):
        final = swept.delta_at(step)
        losses[step] = stored.base_loss + inner(stored.heldout, final)
        if evaluate:
            evaluated[step] = evaluate(setting, final)
    if not all(math.isfinite(loss) for loss in (*losses.values(), *evaluated.values())):
        return Outcome(setting.changed, steps, "diverges: the loss is no number", 0, None, None, None, None, None)
    if evaluate:
        points = [{"step": n, "predicted_loss": losses[n], "evaluated_loss": evaluated[n]} for n in losses]
        last = last_trusted(points, prediction.tolerance)
        trusted = last["step"] if last else 0
    else:
        reach = stored.trusted_distance * (1 + REACH)
        trusted = next((n for n, distance in enumerate(swept.distances) if distance > reach), steps)
    moved = {
        name: float(d.norm()) / stored.weight_norms[name] for name, d in final.items() if stored.weight_norms[name]
    }
    largest = max(moved, key=lambda name: moved[name], default=None)
    return Outcome(
        changed=setting.changed,
        steps=steps,
        status=trust_in_words(trusted, steps),
        trusted_steps=trusted,
        predicted_loss=losses[steps],
        trusted_loss=next((losses[step] for step in reversed(losses) if step <= trusted), stored.base_loss),
        evaluated_loss=evaluated.get(steps),
        largest_movement=moved[largest] if largest else 0.0,
        largest_module=largest and largest.removesuffix(".weight"),
    )


def marked(outcomes: list[Outcome]) -> list[Outcome]:
    """The best marked: the lowest evaluated loss; else the lowest predicted one among settings trusted for their
    whole run; else the lowest loss at a setting's own last trusted step."""
    from dataclasses import replace

    def rank(number: int) -> tuple[bool, float]:
        outcome = outcomes[number]
        if outcome.evaluated_loss is not None:
            return False, outcome.evaluated_loss
        loss = outcome.predicted_loss if outcome.trusted else outcome.trusted_loss
        return not outcome.trusted, math.inf if loss is None else loss

    alive = [number for number, outcome in enumerate(outcomes) if outcome.predicted_loss is not None]
    best = min(alive, key=rank, default=None)
    return [replace(outcome, best=number == best) for number, outcome in enumerate(outcomes)]
