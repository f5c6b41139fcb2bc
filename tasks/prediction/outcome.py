"""What a setting of a what-if comes to, what the run itself came to, and which of them is marked."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from foretune.storage.contents import Artifact
from foretune.tasks.inputs.training import TrainingSettings
from foretune.tasks.loading import AdapterSettings

OWN, ALONG, BASE = "the run's own", "measured path", "base gradients"
"""What a setting was predicted from."""

LOWEST = 3
"""Settings of the lowest predicted losses that are evaluated unless all or none are; the lowest trusted one counts
in addition where it is none of these."""


@dataclass(frozen=True)
class Setting:
    """One point of the grid."""

    changed: dict[str, Any]  # dotted path -> value
    adapter: AdapterSettings
    training: TrainingSettings


@dataclass(frozen=True)
class Outcome:
    """The result of a setting; `evaluated_loss` only where forward passes were taken."""

    changed: dict[str, Any]
    steps: int
    status: str  # "whole run", "up to step N of M", or why the recursion ended
    trusted_steps: int
    predicted_loss: float | None  # held-out, nats per label token, after the last step; None where it diverges
    trusted_loss: float | None  # the same at the last evaluation step that is trusted
    evaluated_loss: float | None
    largest_movement: float | None  # norm of a module's delta over the norm of its weight
    largest_module: str | None
    best: bool = False  # the lowest evaluated loss
    lowest: bool = False  # the lowest predicted loss, of the settings that are trusted for their whole run if any is
    predicted_from: str = BASE
    why: str = ""  # not along the measured path, or not to its end

    @property
    def trusted(self) -> bool:
        return self.trusted_steps == self.steps


def own_answer(prediction: Artifact) -> Outcome:
    """What the run itself predicted and evaluated."""
    summary, points = prediction.json("summary.json"), prediction.arrow("path.parquet").to_pylist()
    layers = prediction.arrow("layers.parquet", columns=["module", "norm", "weight_norm"]).to_pylist()
    moved = {row["module"]: row["norm"] / row["weight_norm"] for row in layers if row["weight_norm"]}
    largest = max(moved, key=lambda name: moved[name], default=None)
    return Outcome(
        changed={},
        steps=summary["steps"],
        status=summary["trust"],
        trusted_steps=summary["trusted_steps"],
        predicted_loss=summary["heldout_loss_predicted"],
        trusted_loss=next(p["predicted_loss"] for p in reversed(points) if p["step"] <= summary["trusted_steps"]),
        evaluated_loss=summary["heldout_loss_evaluated"],
        largest_movement=moved[largest] if largest else 0.0,
        largest_module=largest and largest.removesuffix(".weight"),
        predicted_from=OWN,
    )


def lowest_few(outcomes: dict[int, Outcome]) -> list[int]:
    """The settings whose forward passes tell most: the lowest predicted losses, and the lowest trusted one."""
    open_ones = {n: o for n, o in outcomes.items() if o.predicted_loss is not None and o.evaluated_loss is None}
    ranked = sorted(open_ones, key=lambda number: open_ones[number].predicted_loss or 0.0)
    trusted = [number for number in ranked if open_ones[number].trusted]
    return list(dict.fromkeys([*ranked[:LOWEST], *trusted[:1]]))


def marked(outcomes: list[Outcome], evaluated: bool = True) -> list[Outcome]:
    """The best marked, which is the lowest evaluated loss where settings were `evaluated`; and the lowest predicted
    loss among settings trusted for their whole run, else the lowest at a setting's own last trusted step."""

    def predicted(number: int) -> tuple[bool, float]:
        outcome = outcomes[number]
        loss = outcome.predicted_loss if outcome.trusted else outcome.trusted_loss
        return not outcome.trusted, math.inf if loss is None else loss

    alive = [number for number, outcome in enumerate(outcomes) if outcome.predicted_loss is not None]
    lowest = min(alive, key=predicted, default=None)
    losses = {n: loss for n, outcome in enumerate(outcomes) if (loss := outcome.evaluated_loss) is not None}
    best = min(losses, key=lambda number: losses[number], default=None) if evaluated else None
    return [
        dataclasses.replace(outcome, best=number == best, lowest=number == lowest)
        for number, outcome in enumerate(outcomes)
    ]
