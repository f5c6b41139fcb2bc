"""One predicted step against the step that peft and torch.optim take, and where a path starts."""

from __future__ import annotations

import pytest
import torch

from tests.dense import EXACT, label_losses, lora_start, relative_error, role_rows, rows_of

ONE_STEP = ("shards.max_rows=100", "training.batch_size=100", "training.epochs=1", "prediction.max_relative_change=10")


def test_one_step_of_lora_is_the_step_that_peft_and_adamw_take(simulated, reference):
    done = simulated(*EXACT, *ONE_STEP, "training.weight_decay=0.1", "training.max_grad_norm=0.5")
    assert done.summary("prediction")["steps"] == 1
    model, factors = lora_start(reference, r=2, alpha=4, seed=42)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.1)
    losses = [label_losses(model, row["input_ids"], row["loss_mask"]) for row in rows_of(done)]
    torch.cat(losses).mean().backward()
    torch.nn.utils.clip_grad_norm_(trained, 0.5)
    optimizer.step()
    merged = model.merge_and_unload()
    predicted = done.tensors("prediction", "delta")
    assert predicted.keys() == factors.keys()
    for name, delta in predicted.items():
        real = merged.get_parameter(name).detach() - reference.get_parameter(name)
        assert torch.allclose(delta, real, rtol=0, atol=1e-6)
        assert float(real.abs().max()) > 1e-4


@pytest.mark.slow
def test_the_path_starts_at_the_loss_of_the_base_weights(simulated, reference):
    from foretune.tasks.samples.shards import subset_of

    done = simulated(*EXACT, "prediction.evaluation_rows=2")
    heldout = role_rows(done, "heldout")
    chosen = set(subset_of([row["sample_id"] for row in heldout], 2, "evaluation").ids)
    assert len(heldout) > len(chosen)
    kept = [row for row in heldout if row["sample_id"] in chosen]
    losses = torch.cat([label_losses(reference, row["input_ids"], row["loss_mask"]) for row in kept])
    path = done.table("prediction", "path")
    assert path[0]["step"] == 0
    assert path[0]["evaluated_loss"] == pytest.approx(float(losses.mean()), rel=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.slow
def test_one_step_of_a_full_fine_tune_is_the_step_that_torch_takes(simulated, reference, optimizer):
    base = {name: p.clone() for name, p in reference.named_parameters()}
    done = simulated(*EXACT, *ONE_STEP, "adapter.method=full", f"training.optimizer={optimizer}")
    made = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[optimizer]
    trained = list(reference.requires_grad_(True).parameters())
    stepper = made(trained, lr=1e-3, weight_decay=0.0)
    losses = [label_losses(reference, row["input_ids"], row["loss_mask"]) for row in rows_of(done)]
    torch.cat(losses).mean().backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    stepper.step()
    predicted = done.tensors("prediction", "delta")
    assert predicted.keys() == base.keys()
    for name, delta in predicted.items():
        real = (reference.get_parameter(name) - base[name]).detach()
        # Of a few coordinates the gradient is rounding alone, and Adam takes a whole step along its sign.
        assert relative_error(delta, real) < 2e-2
        assert float((delta - real).abs().median()) < 1e-7
