"""Held-out loss at any weights: forward passes on a fixed set of rows, the base weights never touched."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.adapted import AdaptedModel
from tasks.minibatches import minibatches

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from tasks.numerics.batches import Batch


class HeldoutLoss:
    """Mean loss in nats (per label token, or per pair for DPO) over the rows of `table` at W0 + delta."""

    def __init__(self, adapted: AdaptedModel, table: pa.Table, dpo_beta: float | None, batch_tokens: int) -> None:
        from tasks.numerics.objectives import Objective

        self.adapted = adapted
        self.objective = Objective(dpo_beta)
        self.batches = minibatches(table, batch_tokens, adapted.loaded.device)
        self.references = [self._reference(m.batch, m.rejected) for m in self.batches] if dpo_beta else None

    def _reference(self, batch: Batch, rejected: Batch) -> tuple[Tensor, Tensor]:
        import torch

        from tasks.numerics.losses import sequence_logprobs

        with torch.no_grad():
            chosen, refused = (
                sequence_logprobs(self.adapted.call(self.adapted.weights, side), side.labels)
                for side in (batch, rejected)
            )
        return chosen, refused

    def __call__(self, delta: dict[str, Tensor]) -> float:
        """Loss at the base weights plus `delta` {name: [out, in]}; an empty delta gives the base loss."""
        import torch

        base = self.adapted.weights
        weights = base | {name: base[name] + change.to(base[name]) for name, change in delta.items()}
        total = tokens = 0.0
        with torch.no_grad():
            for position, minibatch in enumerate(self.batches):
                reference = self.references[position] if self.references else None
                losses = self.objective.losses(
                    self.adapted.call, weights, minibatch.batch, minibatch.rejected, reference
                )
                total += float(losses.loss_sum.double().sum())
                tokens += float(losses.tokens.sum())
        return total / tokens
