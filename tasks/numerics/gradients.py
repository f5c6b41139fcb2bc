"""Sums of full-weight gradients over micro-batches, with the norms and losses seen on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

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
    ) -> BatchGradient:
        """Forward and backward on one micro-batch; `residuals()` yields the tensors captured by the forward."""
        residuals()  # what layers left that were computed again for the batch before
        losses = self.objective.losses(call, self.leaves, batch, rejected, reference)
        captured, tapped = list(residuals()), taps.outputs() if taps else []
        loss_sum, tokens = losses.loss_sum.sum(), float(losses.tokens.sum())
        gradients = torch.autograd.grad(loss_sum, [*self.leaves.values(), *captured, *tapped])
        gradients, of_outputs = gradients[: len(gradients) - len(tapped)], gradients[len(gradients) - len(tapped) :]
        squares = []
        for (name, total), gradient in zip(self.sums.items(), gradients, strict=False):
            squares.append(float(gradient.double().square().sum()) / tokens**2)
            self.sums[name] = total.add_(gradient)
        for gradient in gradients[len(self.sums) :]:
            summed = gradient.float().sum(dim=(0, 1))
            self.residual_sum = summed if self.residual_sum is None else self.residual_sum + summed
        self.tokens += tokens
        self.loss_sum += float(loss_sum.detach())
        return batch_gradient(losses, squares, taps.projected(of_outputs) if taps else {})


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
