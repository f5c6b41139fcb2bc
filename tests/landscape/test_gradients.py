"""Mean gradients against dense autograd over rows taken one by one."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch
from torch.nn.functional import logsigmoid

from tests.dense import EXACT, label_losses, mean_gradient, relative_error, rows_of


@pytest.mark.parametrize(
    ("max_rows", "batch_tokens"), [pytest.param(1, 1, marks=pytest.mark.slow), (6, 512), (100, 100_000)]
)
def test_the_mean_gradient_is_that_of_the_token_mean_loss(simulated, reference, max_rows, batch_tokens):
    done = simulated(*EXACT, f"shards.max_rows={max_rows}", f"landscape.batch_tokens={batch_tokens}")
    expected = mean_gradient(
        reference, (label_losses(reference, row["input_ids"], row["loss_mask"]) for row in rows_of(done))
    )
    measured = done.tensors("landscape", "gradients")
    assert measured.keys() == expected.keys()
    for name, gradient in expected.items():
        assert relative_error(measured[name], gradient) < 1e-5


@pytest.mark.slow
def test_the_gradient_of_pairs_is_that_of_the_mean_preference_loss(simulated, reference, tiny_rows, tmp_path):
    pairs = [{"prompt": r["instruction"], "chosen": r["output"], "rejected": "No idea."} for r in tiny_rows]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    done = simulated(*EXACT, f"dataset.path={path}", "dataset.heldout={fraction: 0.2}", "training.dpo_beta=0.3")

    def losses() -> Iterator[torch.Tensor]:
        for row in rows_of(done):
            chosen = -label_losses(reference, row["input_ids"], row["loss_mask"]).sum()
            rejected = -label_losses(reference, row["rejected_ids"], row["rejected_mask"]).sum()
            margin = (chosen - chosen.detach()) - (rejected - rejected.detach())
            yield -logsigmoid(0.3 * margin)[None]

    expected = mean_gradient(reference, losses())
    measured = done.tensors("landscape", "gradients")
    for name, gradient in expected.items():
        assert relative_error(measured[name], gradient) < 1e-5
    assert done.summary("landscape")["loss"] == pytest.approx(0.6931472)
