"""The requested run as the prediction knows it: schedule, optimizer, adapter, and the gradients it is replayed over."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.inputs.adapted import AdaptedModel
from foretune.tasks.inputs.field import gradient_field, row_gradients
from foretune.tasks.inputs.training import TrainingSettings
from foretune.tasks.loading import undecayed_weights

if TYPE_CHECKING:
    from foretune.tasks.numerics.field import GradientField, VirtualBatches
    from foretune.tasks.numerics.gradient_shift import GradientShift
    from foretune.tasks.numerics.products import Multiplicand
    from foretune.tasks.numerics.replay import Adapter, Replay, ReplayState
    from foretune.tasks.numerics.row_gradients import RowGradients


@dataclass(frozen=True)
class VirtualRun:
    """The run that is predicted: its schedule, its optimizer and the measured field it is advanced over."""

    adapter: Adapter
    field: GradientField
    training: TrainingSettings
    steps: int
    row_gradients: RowGradients | None = None  # where they are stored for this adapter
    paired: bool = False  # whether the run is a DPO run, whose trainer averages over micro-batches

    @property
    def rates(self) -> list[float]:
        """Learning rate of every step."""
        return self.training.rates(sum(self.field.rows))

    @property
    def sampled(self) -> bool:
        """Whether the measured rows stand for more."""
        measured = sum(self.field.rows)
        return self.training.whole(measured) > measured

    @property
    def elapsed_lr(self) -> list[float]:
        """The cumulative learning rate before every step, and after the last."""
        return [0.0, *accumulate(self.rates)]

    def replayed(
        self,
        snapshots: Sequence[int],
        shift: GradientShift | None = None,
        *,
        start: ReplayState | None = None,
        stop: int | None = None,
    ) -> Replay:
        """The optimizer's recursion over the frozen field, to the run's end or from `start` until `stop` steps are
        taken; with `shift`, over the field with that added to its mean."""
        from foretune.tasks.numerics.replay import replay

        batches, elapsed_lr = self.batches(), self.elapsed_lr

        def gradient(step: int, name: str) -> Multiplicand:
            if shift is None:
                return batches.gradient(step, name)
            return batches.about(shift.added(self.field.mean(name), elapsed_lr[step], name), step, name)

        optimizer = self.training.optimizer_settings()
        return replay(gradient, self.adapter, optimizer, self.rates, start=start, stop=stop, snapshots=snapshots)

    def without(self, left_out: Collection[int]) -> VirtualRun:
        """The run without some of its rows, by their numbers in `row_gradients`: the trainer's own batches of the
        others, and as many steps as these make. Outside the row space of A0, where no row's own gradient is known, it
        stays that of all rows of a block. ValueError where no row is left or none has a gradient of its own."""
        known, gone = self.row_gradients, set(left_out)
        if known is None or len(gone) >= len(known.tokens):
            raise ValueError("no row is left, or no row has a gradient of its own")
        kept = [row for row in range(len(known.tokens)) if row not in gone]
        ends = list(accumulate(self.field.rows))
        counts = [0] * len(ends)
        for row in kept:
            counts[bisect_right(ends, row)] += 1
        blocks, field = [block for block, count in enumerate(counts) if count], self.field
        others = replace(
            field,
            tokens=tuple(field.tokens[block] for block in blocks),
            rows=tuple(counts[block] for block in blocks),
            read=lambda block, name: field.read(blocks[block], name),
            _means={},
            _scatters={},
        )
        rows = replace(
            known,
            tokens=tuple(known.tokens[row] for row in kept),
            read=lambda rows, name: known.read([kept[row] for row in rows], name),
        )
        return replace(self, field=others, row_gradients=rows, steps=self.training.steps(len(kept)))

    def batches(self) -> VirtualBatches:
        """The gradient of every step's batch: the trainer's own batches where per-row gradients are stored, else
        gradient blocks in a seeded order."""
        from foretune.tasks.numerics.field import virtual_batches
        from foretune.tasks.numerics.orders import row_shares, stand_in_shares, stand_ins, trainer_steps

        training, rows = self.training, self.row_gradients
        batches = virtual_batches(self.field, training.rows_per_step, self.steps, training.seed)
        if rows is None:
            return batches
        size, accumulated, measured = training.batch_size, training.gradient_accumulation_steps, len(rows.tokens)
        whole = training.whole(measured)
        steps = trainer_steps(whole, size, accumulated, self.steps, training.seed)
        if whole > measured:  # the measured rows are the first ones by id
            played = stand_ins(whole, measured, training.seed)
            found = [stand_in_shares(step, played, rows.tokens, by_micro_batch=self.paired) for step in steps]
            shares, means = tuple(each.rows for each in found), tuple(each.mean for each in found)
            return replace(batches, row_gradients=rows, shares=shares, mean_shares=means)
        shares = tuple(row_shares(step, rows.tokens, by_micro_batch=self.paired) for step in steps)
        return replace(batches, row_gradients=rows, shares=shares)


def virtual_run(
    run: Run, nodes: list[ArtifactRef], adapted: AdaptedModel, training: TrainingSettings, *, paired: bool
) -> VirtualRun:
    """The run that is predicted, over the stored gradient field."""
    field = gradient_field(run, nodes, adapted)
    rows = row_gradients(run, nodes, adapted)
    return VirtualRun(
        moving_adapter(adapted, thin=in_factors(field)), field, training, training.steps(sum(field.rows)), rows, paired
    )


def in_factors(field: GradientField) -> bool:
    from foretune.tasks.numerics.factored import Factored

    return isinstance(field.read(0, field.names[0]), Factored)


def moving_adapter(adapted: AdaptedModel, *, thin: bool = False) -> Adapter:
    """The adapter as the recursion moves it: both LoRA factors, or the weights themselves; with `thin` the change of
    the weights stays in these factors.

    The Trainer decays both factors, but neither norms nor biases.
    """
    from foretune.tasks.numerics.replay import FullAdapter, LoraAdapter
    from foretune.tasks.numerics.spaces import LoraSpace

    if isinstance(adapted.space, LoraSpace):
        outputs = {name: weight.shape[0] for name, weight in adapted.weights.items()}
        return LoraAdapter(adapted.space.A, adapted.space.scale, outputs, thin)
    return FullAdapter(adapted.weights, undecayed_weights(adapted.loaded.model))
