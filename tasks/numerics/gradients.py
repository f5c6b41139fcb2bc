"""Sums of full-weight gradients over micro-batches, with the norms and losses seen on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foretune.tasks.numerics.batches import Batch
from foretune.tasks.numerics.losses import SampleLosses
from foretune.tasks.numerics.objectives import Call, Objective
from foretune.tasks.numerics.row_gradients import RowTaps


@dataclass(frozen=True)
class BatchGradient:
    """One micro-batch: token-mean loss in nats, gradient norms of that mean, and (loss sum, weight) per sample."""

    loss: float
    tokens: float
    module_norms: list[float]
    global_norm: float
    sample_losses: list[tuple[float, float]]
    rows: dict[str, Tensor]  # {name: [b, out, r]} gradient of each sample in adapter coordinates, where tapped

    @property
    def mean_norm(self) -> float:
        return sum(self.module_norms) / len(self.module_norms)

    @property
    def max_norm(self) -> float:
        return max(self.module_norms)


class GradientSum:
    """Sum over samples of d loss_sum / d W for each weight [out, in], and of d loss_sum / d resid [d_model].

    Sums are float32 and are divided by `tokens` once, by the reader: any partition into micro-batches and
    shards gives the same mean.
    """

    def __init__(self, objective: Objective, weights: dict[str, Tensor]) -> None:
        self.objective = objective
        self.leaves = {name: w.detach().requires_grad_() for name, w in weights.items()}
        self.sums = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in weights.items()}
        self.residual_sum: Tensor | None = None
        self.tokens = 0.0
        self.loss_sum = 0.0

    def add(
        self,
        call: Call,
        batch: Batch,
        rejected: Batch | None = None,
        residuals: Callable[[], Sequence[Tensor]] = tuple,
        reference: tuple[Tensor, Tensor] | None = None,
        taps: RowTaps | None = None,
        graph_tokens: int | None = None,
    ) -> BatchGradient:
        """Forward and backward on one micro-batch; `residuals()` yields the tensors captured by the forward.

        With `graph_tokens` by a few rows at a time, of so many tokens together: what is told is of the whole.
        """
        found, gradients, rows = [], [], []
        for piece in pieces(batch, rejected, reference, graph_tokens):
            losses, of_weights, projected = self._backward(call, piece, residuals, taps)
            found.append(losses)
            rows.append(projected)
            for n, gradient in enumerate(gradients):
                gradients[n], of_weights[n] = _wide(gradient) + of_weights[n], None
            gradients = gradients or of_weights
        losses = SampleLosses(*(torch.cat([getattr(each, side) for each in found]) for side in ("loss_sum", "tokens")))
        tokens, squares = float(losses.tokens.sum()), []
        for (name, total), gradient in zip(self.sums.items(), gradients, strict=True):
            squares.append(float(gradient.double().square().sum()) / tokens**2)
            self.sums[name] = total.add_(gradient)
        self.tokens += tokens
        self.loss_sum += float(losses.loss_sum.sum())
        return batch_gradient(losses, squares, {name: torch.cat([each[name] for each in rows]) for name in rows[0]})

    def _backward(
        self, call: Call, piece: Piece, residuals: Callable[[], Sequence[Tensor]], taps: RowTaps | None
    ) -> tuple[SampleLosses, list[Any], dict[str, Tensor]]:
        """Losses, gradients of the weights, and those of the rows, of what is one graph."""
        residuals()  # what layers left that were computed again for the piece before
        losses = self.objective.losses(call, self.leaves, *piece)
        captured, tapped = list(residuals()), taps.outputs() if taps else []
        gradients = torch.autograd.grad(losses.loss_sum.sum(), [*self.leaves.values(), *captured, *tapped])
        weights = len(self.leaves)
        for gradient in gradients[weights : weights + len(captured)]:
            summed = gradient.float().sum(dim=(0, 1))
            self.residual_sum = summed if self.residual_sum is None else self.residual_sum + summed
        rows = taps.projected(gradients[weights + len(captured) :]) if taps else {}
        return SampleLosses(losses.loss_sum.detach(), losses.tokens), list(gradients[:weights]), rows


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


Piece = tuple[Batch, Batch | None, tuple[Tensor, Tensor] | None]
"""Rows of a micro-batch, padded as they were: chosen, rejected, and the reference's log-probabilities of both."""


def pieces(
    batch: Batch, rejected: Batch | None, reference: tuple[Tensor, Tensor] | None, most: int | None
) -> Iterator[Piece]:
    """A micro-batch by as many rows as `most` tokens are, padding included, at least one."""
    width = (batch.padded_tokens + (rejected.padded_tokens if rejected else 0)) // batch.rows
    step = batch.rows if most is None else max(1, most // width)
    for start in range(0, batch.rows, step):
        at = slice(start, start + step)
        base = None if reference is None else (reference[0][at], reference[1][at])
        yield batch.part(at), None if rejected is None else rejected.part(at), base


def batch_gradient(losses: SampleLosses, squares: Sequence[float], rows: dict[str, Tensor]) -> BatchGradient:
    """What one micro-batch says; `squares` are the modules' squared norms of the token-mean gradient."""
    loss_sum, tokens = losses.loss_sum.detach(), float(losses.tokens.sum())
    return BatchGradient(
        loss=float(loss_sum.sum()) / tokens,
        tokens=tokens,
        module_norms=[square**0.5 for square in squares],
        global_norm=sum(squares) ** 0.5,
        sample_losses=list(zip(loss_sum.tolist(), losses.tokens.tolist(), strict=True)),
        rows=rows,
    )


@dataclass(frozen=True)
class MeanGradient:
    """The mean over nodes of a gradient field for one weight, with what the noise scale needs."""

    mean: Tensor  # [out, in] gradient of the token-mean loss
    node_squares: list[float]  # per node: squared norm of its own token-mean gradient


def mean_gradient(node_sums: Sequence[Tensor], node_tokens: Sequence[float]) -> MeanGradient:
    """Reduce one weight's node sums [out, in] to the mean: sum, then divide once."""
    total = torch.zeros_like(node_sums[0], dtype=torch.float32)
    squares = []
    for node, tokens in zip(node_sums, node_tokens, strict=True):
        total += node
        squares.append(float(node.double().square().sum()) / tokens**2 if tokens else 0.0)
    return MeanGradient(total / sum(node_tokens), squares)


def value_gradients(
    weights: dict[str, Tensor], values: Iterable[Callable[[dict[str, Tensor]], Tensor]]
) -> dict[str, Tensor]:
    """{name: [out, in]} fp32 gradient of the sum of scalar functions of the weights; 0 where none depends on one."""
    leaves = {name: w.detach().requires_grad_() for name, w in weights.items()}
    total = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in weights.items()}
    for value in values:
        found = torch.autograd.grad(value(leaves), list(leaves.values()), materialize_grads=True, allow_unused=True)
        for name, gradient in zip(total, found, strict=True):
            total[name] += gradient
    return total
