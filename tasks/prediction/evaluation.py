"""Loss and gradients of a fixed set of rows at any weights; the base weights are never touched."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.inputs.adapted import AdaptedModel, adapt
from foretune.tasks.inputs.factors import FactorSettings, gradient_sum
from foretune.tasks.inputs.handles import ModelHandle
from foretune.tasks.loading import AdapterSettings, recomputed
from foretune.tasks.samples.minibatches import Minibatch, minibatches
from foretune.tasks.samples.rows import SubsetRows

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from foretune.tasks.numerics.factored import Gradient
    from foretune.tasks.numerics.gradients import GradientSum
    from foretune.tasks.numerics.sketch import SketchSum


def loss_at_base(run: Run, shards: list[ArtifactRef], ids: Collection[str]) -> float:
    """Mean loss of the rows `ids` at the base weights, from the landscape's shards of their role."""
    wanted = set(ids)
    rows = [row for shard in shards for row in run.store.open(shard).arrow("samples.parquet").to_pylist()]
    evaluated = [(row["loss_sum"], row["tokens"]) for row in rows if row["sample_id"] in wanted]
    return sum(loss for loss, _ in evaluated) / sum(tokens for _, tokens in evaluated)


class RowsAtWeights:
    """The rows of a table at W0 + delta, {name: [out, in]}; an empty delta means the base weights.

    Means are in nats per label token, or per pair for DPO, whose reference is the base model. With `factors`, how the
    field is stored, gradients are measured in these too.
    """

    def __init__(
        self,
        adapted: AdaptedModel,
        table: pa.Table,
        dpo_beta: float | None,
        batch_tokens: int,
        factors: FactorSettings | None = None,
    ) -> None:
        from foretune.tasks.numerics.objectives import Objective

        self.adapted, self.factors, self.dpo_beta = adapted, factors, dpo_beta
        self.objective, self.table, self.batch_tokens = Objective(dpo_beta), table, batch_tokens
        self._parts: dict[tuple[int, int], RowsAtWeights] = {}

    @cached_property
    def batches(self) -> list[Minibatch]:
        return minibatches(self.table, self.batch_tokens, self.adapted.loaded.device)

    @property
    def trained(self) -> list[int]:
        """Positions of the rows that have a loss."""
        return sorted(row for minibatch in self.batches for row in minibatch.rows)

    @cached_property
    def references(self) -> list[tuple[Tensor, Tensor] | None]:
        """What the base weights say of every micro-batch of pairs; read before the weights are moved."""
        return [self._reference(each) if self.dpo_beta and each.rejected else None for each in self.batches]

    def part(self, first: int, of: int) -> RowsAtWeights:
        """Every `of`-th of the rows that have a loss, from `first` on; of fewer rows than `of` one by one."""
        of = min(of, len(self.trained))
        if of <= 1:
            return self
        first %= of
        if (first, of) not in self._parts:
            table = self.table.take(self.trained[first::of])
            part = RowsAtWeights(self.adapted, table, self.dpo_beta, self.batch_tokens, self.factors)
            self._parts[first, of] = part
        return self._parts[first, of]

    def loss(self, delta: Mapping[str, Gradient]) -> float:
        """Mean loss, by forward passes."""
        import torch

        total = tokens = 0.0
        read = list(zip(self.batches, self.references, strict=True))
        with torch.no_grad(), self.adapted.moved(delta) as weights:
            for minibatch, reference in read:
                losses = self.objective.losses(
                    self.adapted.call, weights, minibatch.batch, minibatch.rejected, reference
                )
                total += float(losses.loss_sum.double().sum())
                tokens += float(losses.tokens.sum())
        return total / tokens

    def gradients(self, delta: Mapping[str, Gradient]) -> GradientSum | SketchSum:
        """Sums of the full-weight gradients over all rows, by forward and backward passes."""
        adapted, read = self.adapted, list(zip(self.batches, self.references, strict=True))
        with adapted.moved(delta) as weights:
            total = gradient_sum(adapted.loaded, weights, self.dpo_beta, self.factors)
            with recomputed(adapted.loaded, total.leaves):
                for minibatch, reference in read:
                    total.add(adapted.call, minibatch.batch, minibatch.rejected, reference=reference)
        return total

    def _reference(self, minibatch: Minibatch) -> tuple[Tensor, Tensor]:
        import torch

        from foretune.tasks.numerics.losses import sequence_logprobs

        with torch.no_grad():
            chosen, rejected = (
                sequence_logprobs(self.adapted.call(self.adapted.weights, side), side.labels)  # pyright: ignore[reportArgumentType, reportOptionalMemberAccess]
                for side in (minibatch.batch, minibatch.rejected)
            )
        return chosen, rejected


def rows_at_weights(
    run: Run,
    model: ModelHandle,
    rows: SubsetRows,
    adapter: AdapterSettings,
    seed: int,
    dpo_beta: float | None,
    batch_tokens: int,
) -> RowsAtWeights:
    """The same, opened from what a pass is given."""
    return RowsAtWeights(adapt(model.open(run), adapter, seed), rows.read(run), dpo_beta, batch_tokens)


@dataclass(frozen=True)
class HeldOut:
    """The held-out rows that are evaluated along the path, and what is known at the base weights."""

    rows: RowsAtWeights
    base_loss: float  # of these rows
    base_gradient: Mapping[str, Gradient]  # {name: [out, in]} mean gradient of all held-out rows
