"""Other settings predicted from the gradients that a run has stored: no gradient is measured.

A setting goes along the measured path of the run where that serves it, as a run with `prediction.along` does, and is
trusted as far as the run's own prediction was. Elsewhere its loss is the first-order one, from the gradients at the
base weights, and it is trusted up to the distance from them at which the run's own path over base gradients alone
still agreed with forward passes. The run's own setting is the run's own answer.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foretune.tasks.prediction.horizon import trust_in_words, trusted_steps
from foretune.tasks.prediction.outcome import ALONG, BASE, Outcome, Setting, lowest_few, marked
from foretune.tasks.prediction.replays import Virtual, replayed, virtual_of
from foretune.tasks.prediction.settings import PredictionSettings
from foretune.tasks.prediction.stored_gradients import StoredGradients
from foretune.tasks.prediction.trajectory import difference, evaluation_steps, inner, loss_further

if TYPE_CHECKING:
    from torch import Tensor

    from foretune.tasks.numerics.sweep import Swept

Told = Callable[[str, int, int, str], None]
"""What is going on, how much of it is done, of how much, and of what."""

REACH = 1e-6
"""Relative rounding: a setting that repeats the run ends exactly at the distance up to which the run was trusted."""


@dataclass(frozen=True)
class Table:
    """The outcomes of a grid, and that of the run's own setting, which is one of the marks' candidates."""

    own: Outcome
    outcomes: list[Outcome]


def predicted_outcomes(
    stored: StoredGradients,
    settings: list[Setting],
    prediction: PredictionSettings,
    evaluate: Any,
    everything: bool,
    told: Told = lambda what, done, total, unit: None,
) -> Table:
    """One outcome per setting, with the best and the lowest predicted one marked. `told` hears of every step that is
    replayed and of every setting that is evaluated.

    `evaluate(setting, delta)` gives the held-out loss by forward passes, None where none may be taken. With
    `everything` every setting is evaluated along its path, so that its horizon is the evaluated one; else the few of
    the lowest predicted losses are evaluated at their end.
    """
    work = _Work(stored, prediction, told)
    outcomes = work.outcomes(dict(enumerate(settings)), evaluate if everything else None, prediction.path_points)
    few = lowest_few(outcomes) if evaluate and not everything else []
    for done, number in enumerate(few):
        told("evaluating", done, len(few), "settings")
        outcomes[number] = work.evaluated(number, settings[number], evaluate)
    changed = {path: own_value(stored.own, path) for path in settings[0].changed}
    own = dataclasses.replace(stored.own_outcome, changed=changed)
    # The run's own comes last: where the grid repeats it, the mark stands in the grid.
    *others, own = marked([*(outcomes[n] for n in range(len(settings))), own], evaluated=evaluate is not None)
    return Table(own, others)


def own_value(own: Setting, path: str) -> Any:
    """The run's own value of a dotted path; None for one that is only read, as `warmup_steps` is."""
    section, _, name = path.partition(".")
    return getattr(own, section).model_dump(mode="json").get(name)


@dataclass
class _Work:
    """Replays of settings. Of the few that are evaluated next the replay is kept, but of full fine-tunes, whose deltas
    are as large as the model."""

    stored: StoredGradients
    prediction: PredictionSettings
    told: Told
    kept: dict[int, tuple[Virtual, Swept]] = dataclasses.field(default_factory=dict)

    def outcomes(self, settings: dict[int, Setting], evaluate: Any, points: int) -> dict[int, Outcome]:
        """By number. Settings that share their batches are replayed side by side; the run's own is not replayed."""
        outcomes: dict[int, Outcome] = {}
        groups: dict[tuple[int, int, int], list[int]] = {}
        for number, setting in settings.items():
            if self.stored.is_own(setting):
                outcomes[number] = dataclasses.replace(self.stored.own_outcome, changed=setting.changed)
                continue
            training = setting.training
            alone = number if setting.adapter.method == "full" else -1  # its deltas are as large as the model
            key = (training.batch_size, training.gradient_accumulation_steps, alone)
            groups.setdefault(key, []).append(number)
        virtual = {number: virtual_of(self.stored, settings[number]) for each in groups.values() for number in each}
        longest = {key: max(virtual[number].run.steps for number in each) for key, each in groups.items()}
        done, total = 0, sum(longest.values())
        for key, numbers in groups.items():
            swept = self._replayed([virtual[number] for number in numbers], done, total)
            done += longest[key]
            self.kept |= {n: (virtual[n], s) for n, s in zip(numbers, swept, strict=True) if key[2] < 0}
            for number, each in zip(numbers, swept, strict=True):
                if evaluate:
                    self.told("evaluating", len(outcomes), len(settings), "settings")
                outcomes[number] = self._outcome(settings[number], virtual[number], each, evaluate, points)
            few = {*lowest_few(outcomes)}
            self.kept = {number: each for number, each in self.kept.items() if number in few}
        return outcomes

    def evaluated(self, number: int, setting: Setting, evaluate: Any) -> Outcome:
        """The same with its end evaluated."""
        if number not in self.kept:
            return self.outcomes({number: setting}, evaluate, 1)[number]
        return self._outcome(setting, *self.kept[number], evaluate, 1)

    def _replayed(self, virtual: list[Virtual], done: int, total: int) -> list[Swept]:
        return replayed(
            self.stored, virtual, self.prediction, lambda step: self.told("replaying", done + step, total, "steps")
        )

    def _outcome(self, setting: Setting, virtual: Virtual, swept: Swept, evaluate: Any, points: int) -> Outcome:
        return _outcome(self.stored, setting, virtual, swept, self.prediction, evaluate, points)


def _outcome(
    stored: StoredGradients,
    setting: Setting,
    virtual: Virtual,
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


def _losses(stored: StoredGradients, virtual: Virtual, swept: Swept) -> tuple[dict[int, float], dict[str, Tensor]]:
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


def _reach(stored: StoredGradients, virtual: Virtual, swept: Swept) -> int:
    """The last step that may be trusted without an evaluation."""
    if virtual.path is not None:
        return virtual.path.reach(virtual.run)
    reach = stored.trusted_distance * (1 + REACH)
    return next((n for n, distance in enumerate(swept.distances) if distance > reach), virtual.run.steps)
