"""A setting of a what-if as a run that is replayed, along the measured path where that serves it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from foretune.tasks.prediction.measured_path import MeasuredPath
from foretune.tasks.prediction.outcome import Setting
from foretune.tasks.prediction.setting_adapter import adapter_of
from foretune.tasks.prediction.settings import PredictionSettings
from foretune.tasks.prediction.trajectory import evaluation_steps
from foretune.tasks.prediction.virtual_run import VirtualRun

if TYPE_CHECKING:
    from foretune.tasks.numerics.products import Multiplicand
    from foretune.tasks.numerics.sweep import Swept
    from foretune.tasks.prediction.stored_gradients import StoredGradients

FEW_NUMBERS = 2**22
"""Of a weight: a product with the factors of some adapters takes a millisecond or so."""


@dataclass(frozen=True)
class Virtual:
    """A setting's run, and the measured path that it goes along or the reason why it goes along none."""

    run: VirtualRun
    path: MeasuredPath | None
    why: str


def virtual_of(stored: StoredGradients, setting: Setting) -> Virtual:
    steps = setting.training.steps(sum(stored.field.rows))
    run = VirtualRun(
        adapter_of(stored, setting), stored.field, setting.training, steps, stored.row_gradients, stored.paired
    )
    if stored.path is None:
        return Virtual(run, None, "the run measured no others")
    refusal = stored.path.refusal(setting.adapter, setting.training)
    return Virtual(run, None, refusal) if refusal else Virtual(run, stored.path, stored.path.ended(run))


def replayed(
    stored: StoredGradients, virtual: list[Virtual], prediction: PredictionSettings, told: Callable[[int], None]
) -> list[Swept]:
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
    batches = longest.batches()

    def gradient(step: int, name: str) -> Multiplicand:
        if name == stored.field.names[0]:
            told(step)
        return batches.gradient(step, name)

    with _threads_for(max(rows * columns for rows, columns in stored.shapes.values())):
        return sweep(gradient, stored.field.names, members, shift)


@contextlib.contextmanager
def _threads_for(numbers: int) -> Iterator[None]:
    """One thread where the largest weight has few numbers: threads would wait for each other longer than they save, on
    a machine that does other work most of all (the demo on two busy cores: 86 s of processor time, 8 with one)."""
    import torch

    given = torch.get_num_threads()
    torch.set_num_threads(1 if numbers < FEW_NUMBERS else given)
    try:
        yield
    finally:
        torch.set_num_threads(given)
