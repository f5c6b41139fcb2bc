"""Gradient checkpointing: every layer runs twice, and nothing else changes."""

from __future__ import annotations

import pytest
import torch

from foretune.tasks.loading import label_caller, load_model, recomputed
from foretune.tasks.loading.hooks import captured_residuals, decoder_layers
from foretune.tasks.numerics.gradients import GradientSum
from foretune.tasks.numerics.objectives import Objective
from foretune.tasks.numerics.row_gradients import RowTaps

from .conftest import settings

NAMES = [f"model.layers.{layer}.self_attn.{side}_proj.weight" for layer in (0, 1) for side in "qv"]


def measured(folder, batch, moved, **changed):
    """Gradient sums, residual gradient and row gradients of two batches, and how often layer 0 ran."""
    loaded = load_model(folder, settings(folder, **changed))
    torch.manual_seed(0)
    weights = {name: loaded.weight(name) + moved * torch.randn_like(loaded.weight(name)) for name in NAMES}
    factors = {name: torch.randn(2, weight.shape[1]) for name, weight in weights.items()}
    modules = {name: loaded.model.get_submodule(name.removesuffix(".weight")) for name in NAMES}
    total, runs = GradientSum(Objective(), weights), []
    handle = decoder_layers(loaded.model)[0].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    with RowTaps(modules, factors) as taps, captured_residuals(loaded, "blocks.1.hook_resid_pre") as residuals:
        for _ in range(2):
            with recomputed(loaded, total.leaves):
                seen = total.add(label_caller(loaded, NAMES), batch, residuals=residuals, taps=taps)
    handle.remove()
    assert not any(module.training for module in loaded.model.modules())
    return total, seen.rows, len(runs)


@pytest.mark.parametrize("moved", [0.0, 0.1], ids=["base", "anchor"])
def test_gradients_are_the_same_and_layers_run_twice(tiny_llama, batch, moved):
    plain, rows, once = measured(tiny_llama, batch, moved)
    again, rows_again, twice = measured(tiny_llama, batch, moved, gradient_checkpointing=True)
    assert twice == 2 * once
    torch.testing.assert_close(again.sums, plain.sums)
    torch.testing.assert_close(again.residual_sum, plain.residual_sum)
    torch.testing.assert_close(rows_again, rows)
