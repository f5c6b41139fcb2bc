"""Rows that stand for others: they scatter as rows do, and add up to what all rows add up to."""

from __future__ import annotations

import pytest
import torch

from foretune.tasks.numerics.orders import row_shares, stand_in_shares, stand_ins, trainer_steps


def gradients(rows: int, width: int = 400) -> torch.Tensor:
    """[rows, width] of unlike rows about a mean of one."""
    return 1.0 + torch.randn(rows, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def batches(rows: int, measured: int, steps: int, tokens: list[float], values: torch.Tensor) -> torch.Tensor:
    """[steps, width] gradient of every batch of four."""
    played, mean = stand_ins(rows, measured, seed=1), values.sum(0) / sum(tokens)
    made = []
    for step in trainer_steps(rows, 4, 1, steps, seed=2):
        shares = stand_in_shares(step, played, tokens)
        made.append(sum(share * values[row] for row, share in shares.rows.items()) + shares.mean * mean)
    return torch.stack(made)


@pytest.mark.parametrize(("rows", "measured"), [(96, 24), (100, 24), (50, 49)])
def test_over_an_epoch_the_batches_have_the_measured_rows_mean(rows, measured):
    values, tokens = gradients(measured), [1.0] * measured
    epoch = batches(rows, measured, rows // 4 + bool(rows % 4), tokens, values)
    sizes = torch.tensor([4.0] * (rows // 4) + [rows % 4] * bool(rows % 4), dtype=torch.float64)
    whole = (epoch * sizes[:, None]).sum(0) / rows
    assert torch.allclose(whole, values.mean(0), atol=1e-9)


def test_a_batch_of_stand_ins_scatters_as_a_batch_of_rows():
    values = gradients(40)
    played = batches(400, 40, 100, [1.0] * 40, values)
    real = batches(400, 400, 100, [1.0] * 400, gradients(400))
    assert float(played.var(0).mean()) == pytest.approx(float(real.var(0).mean()), rel=0.1)


def test_rows_that_are_all_measured_are_the_trainers_own():
    (step,) = trainer_steps(8, 4, 1, 1, seed=3)
    tokens = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    shares = stand_in_shares(step, stand_ins(8, 8, seed=1), tokens)
    assert shares.rows == row_shares(step, tokens) and shares.mean == 0.0


def test_a_mean_over_unequal_rows_keeps_its_tokens():
    values, tokens = torch.arange(1.0, 7.0)[:, None].double(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]  # one per token
    assert torch.allclose(batches(24, 6, 6, tokens, values), torch.ones(6, 1).double())


@pytest.mark.parametrize("measured", [0, 11])
def test_none_or_more_than_all_are_refused(measured):
    with pytest.raises(ValueError, match="measured rows of 10"):
        stand_ins(10, measured, seed=1)
