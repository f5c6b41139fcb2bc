"""A micro-batch by pieces is the micro-batch, with the graph of a piece."""

from __future__ import annotations

import pytest
import torch

from foretune.tasks.numerics.gradients import GradientSum, pieces
from foretune.tasks.numerics.objectives import Objective
from foretune.tasks.numerics.row_gradients import RowTaps


@pytest.mark.parametrize("beta", [None, 0.3])
def test_pieces_add_up_to_the_micro_batch_and_no_graph_is_wider_than_one(perceptron, beta):
    batch, width = perceptron.batch, perceptron.batch.input_ids.shape[1]
    rejected = reference = None
    if beta:
        rejected = type(batch)(batch.input_ids.flip(1), batch.attention_mask, batch.labels)
        reference = tuple(torch.linspace(-9, -5, batch.rows, dtype=torch.float64) for _ in range(2))
        width *= 2
    factors = {name: torch.randn(2, w.shape[1], dtype=w.dtype) for name, w in perceptron.weights.items()}

    def measured(most: int | None):
        read = []

        def call(weights, part):
            read.append(part.padded_tokens)
            return perceptron.call(weights, part)

        total = GradientSum(Objective(beta), perceptron.weights)
        with RowTaps(perceptron.modules, factors) as taps:
            told = total.add(call, batch, rejected, reference=reference, taps=taps, graph_tokens=most)
        return total, told, read

    (whole, told, _), (parts, again, read) = measured(None), measured(2 * width + 1)
    assert len(read) > 2 and max(read) * (2 if beta else 1) <= 2 * width
    for name, gradient in whole.sums.items():
        torch.testing.assert_close(parts.sums[name], gradient)
        torch.testing.assert_close(again.rows[name], told.rows[name])
    assert again.module_norms == pytest.approx(told.module_norms)
    assert (again.loss, again.tokens, parts.loss_sum) == pytest.approx((told.loss, told.tokens, whole.loss_sum))
    assert [loss for loss, _ in again.sample_losses] == pytest.approx([loss for loss, _ in told.sample_losses])


def test_a_piece_has_a_row_at_least(perceptron):
    assert len(list(pieces(perceptron.batch, None, None, 1))) == perceptron.batch.rows
    assert len(list(pieces(perceptron.batch, None, None, None))) == 1
