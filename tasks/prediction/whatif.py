"""Other settings predicted from the gradients that a run has stored: no gradient is measured.

A setting goes along the measured path of the run where that serves it, as a run with `prediction.along` does, and is
trusted as far as the run's own prediction was. Elsewhere its loss is the first-order one, from the gradients at the
base weights, and it is trusted up to the distance from them at which the run's own path over base gradients alone
still agreed with forward passes. The run's own setting is the run's own answer.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foretune.storage.errors import BadInput
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.keys import identity
from foretune.tasks.inputs.field import stored_field, stored_rows
from foretune.tasks.inputs.training import TrainingSettings
from foretune.tasks.loading import AdapterSettings, lora_init, lora_scale
from foretune.tasks.prediction.horizon import last_trusted, trust_in_words, trusted_steps
from foretune.tasks.prediction.measured_path import MeasuredPath
from foretune.tasks.prediction.outcome import ALONG, BASE, Outcome, Setting, lowest_few, marked, own_answer
from foretune.tasks.prediction.settings import PredictionSettings
from foretune.tasks.prediction.trajectory import difference, evaluation_steps, inner, loss_further
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
        first = run.store.open(nodes[0]).tensor_file("gradients.safetensors")
        shapes = {name: tuple(first.get_slice(name).get_shape()) for name in names}
        rows = None
        if adapter.method == "lora":
            rows = stored_rows(run, nodes, lora_init(shapes, adapter, training.seed, getattr(torch, dtype)))
        points = predicted.arrow("single_anchor.parquet").to_pylist()
        layers = predicted.arrow("layers.parquet", columns=["module", "weight_norm"]).to_pylist()
        field, own = stored_field(run, nodes, names), Setting({}, adapter, training)
        heldout = run.store.open(heldout_gradient).tensors("gradients.safetensors")
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


@dataclass(frozen=True)
class Table:
    """The outcomes of a grid, and that of the run's own setting, which is one of the marks' candidates."""

    own: Outcome
    outcomes: list[Outcome]


def predicted_outcomes(
    stored: StoredGradients, settings: list[Setting], prediction: PredictionSettings, evaluate: Any, everything: bool
) -> Table:
    """One outcome per setting, with the best and the lowest predicted one marked.

    `evaluate(setting, delta)` gives the held-out loss by forward passes, None where none may be taken. With
    `everything` every setting is evaluated along its path, so that its horizon is the evaluated one; else the few of
    the lowest predicted losses are evaluated at their end.
    """
    first = evaluate if everything else None
    outcomes = _outcomes(stored, dict(enumerate(settings)), prediction, first, prediction.path_points)
    if evaluate and not everything:
        few = {number: settings[number] for number in lowest_few(outcomes)}
        outcomes |= _outcomes(stored, few, prediction, evaluate, 1)
    changed = {path: own_value(stored.own, path) for path in settings[0].changed}
    own = dataclasses.replace(stored.own_outcome, changed=changed)
    # The run's own comes last: where the grid repeats it, the mark stands in the grid.
    *others, own = marked([*(outcomes[n] for n in range(len(settings))), own], evaluated=evaluate is not None)
    return Table(own, others)


def own_value(own: Setting, path: str) -> Any:
    """The run's own value of a dotted path; None for one that is only read, as `warmup_steps` is."""
    section, _, name = path.partition(".")
    return getattr(own, section).model_dump(mode="json").get(name)


def _outcomes(
    stored: StoredGradients, settings: dict[int, Setting], prediction: PredictionSettings, evaluate: Any, points: int
) -> dict[int, Outcome]:
    """By number. Settings that share their batches are replayed side by side; the run's own is not replayed."""
    outcomes: dict[int, Outcome] = {}
    groups: dict[tuple[int, int, int], list[int]] = {}
    for number, setting in settings.items():
        if stored.is_own(setting):
            outcomes[number] = dataclasses.replace(stored.own_outcome, changed=setting.changed)
            continue
        training = setting.training
        alone = number if setting.adapter.method == "full" else -1  # its deltas are as large as the model
        key = (training.batch_size, training.gradient_accumulation_steps, alone)
        groups.setdefault(key, []).append(number)
    for numbers in groups.values():
        virtual = [_virtual(stored, settings[number]) for number in numbers]
        for number, run, swept in zip(numbers, virtual, _replayed(stored, virtual, prediction), strict=True):
            outcomes[number] = _outcome(stored, settings[number], run, swept, prediction, evaluate, points)
    return outcomes


@dataclass(frozen=True)
class _Virtual:
    """A setting's run, and the measured path that it goes along or the reason why it goes along none."""

    run: VirtualRun
    path: MeasuredPath | None
    why: str


def _virtual(stored: StoredGradients, setting: Setting) -> _Virtual:
    steps = setting.training.steps(sum(stored.field.rows))
    run = VirtualRun(
        _adapter(stored, setting), stored.field, setting.training, steps, stored.row_gradients, stored.paired
    )
    if stored.path is None:
        return _Virtual(run, None, "the run measured no others")
    refusal = stored.path.refusal(setting.adapter, setting.training)
    return _Virtual(run, None, refusal) if refusal else _Virtual(run, stored.path, stored.path.ended(run))


def _replayed(stored: StoredGradients, virtual: list[_Virtual], prediction: PredictionSettings) -> list[Swept]:
    from foretune.tasks.numerics.replay import FullAdapter
    from foretune.tasks.numerics.sweep import Member, sweep

    members = []
    for each in virtual:
        run = each.run
        # A full fine-tune's deltas are as large as the model: few of them are kept.
        full = isinstance(run.adapter, FullAdapter)
        points = 1 if full and each.path is None else prediction.path_points
        cuts = {*evaluation_steps(run.steps, points), *(each.path.cuts(run) if each.path and not full else ())}
        shifts = each.path.shifts(run) if each.path else ()
        members.append(Member(run.adapter, run.training.optimizer_settings(), run.rates, cuts, shifts))
    longest = max((each.run for each in virtual), key=lambda run: run.steps)
    shift = stored.path.train.read if stored.path else None
    return sweep(longest.batches().gradient, stored.field.names, members, shift)


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
    stored: StoredGradients,
    setting: Setting,
    virtual: _Virtual,
    swept: Swept,
    prediction: PredictionSettings,
    evaluate: Any,
    points: int,
) -> Outcome:
    steps = virtual.run.steps
    told: dict[str, Any] = {"predicted_from": ALONG if virtual.path else BASE, "why": virtual.why}
    if swept.fault is not None:
        return Outcome(setting.changed, steps, f"diverges: {swept.fault}", 0, None, None, None, None, None, **told)
    losses, final = _losses(stored, virtual, swept)
    wanted = [step for step in evaluation_steps(steps, points) if step in losses] if evaluate else []
    evaluated = {step: evaluate(setting, final if step == steps else swept.delta_at(step)) for step in wanted}
    if not all(math.isfinite(loss) for loss in (*losses.values(), *evaluated.values())):
        return Outcome(
            setting.changed, steps, "diverges: the loss is no number", 0, None, None, None, None, None, **told
        )
    trusted = _reach(stored, virtual, swept)
    if evaluated:
        start = {"step": 0, "predicted_loss": stored.base_loss, "evaluated_loss": stored.base_loss}
        pairs = [{"step": n, "predicted_loss": losses[n], "evaluated_loss": loss} for n, loss in evaluated.items()]
        trusted = trusted_steps([start, *pairs], prediction.tolerance, trusted if points == 1 else 0)
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
        **told,
    )


def _losses(stored: StoredGradients, virtual: _Virtual, swept: Swept) -> tuple[dict[int, float], dict[str, Tensor]]:
    """Predicted loss after every snapshot's steps, and the delta of the last one: first order at the base weights, or
    the integral of the held-out gradient along the measured path."""
    losses: dict[int, float] = {}
    final: dict[str, Tensor] = {}
    loss, start, elapsed = stored.base_loss, 0, virtual.run.elapsed_lr
    for step in sorted(swept.snapshots):
        before, final = final, swept.delta_at(step)
        if virtual.path is None:
            losses[step] = stored.base_loss + inner(stored.heldout, final)
            continue
        moved, middle = difference(final, before), (elapsed[start] + elapsed[step]) / 2
        loss = losses[step] = loss_further(loss, stored.heldout, virtual.path.heldout, middle, moved)
        start = step
    return losses, final


def _reach(stored: StoredGradients, virtual: _Virtual, swept: Swept) -> int:
    """The last step that may be trusted without an evaluation."""
    if virtual.path is not None:
        return virtual.path.reach(virtual.run)
    reach = stored.trusted_distance * (1 + REACH)
    return next((n for n, distance in enumerate(swept.distances) if distance > reach), virtual.run.steps)
