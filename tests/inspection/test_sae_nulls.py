"""Concepts held against null deltas: the changes themselves, and that nothing moves by noise."""

from __future__ import annotations

import pytest
import torch

from foretune.tasks.inspection.sae_diff import NOISE, beyond_noise
from foretune.tasks.numerics.nulls import null_delta
from tests.dense import role_rows


def stored_nulls(first) -> dict:
    (made,) = [made for task, made in first.step.steps if task == "sae_nulls"]
    return first.store.open(made).tensors("nulls.safetensors")


def test_a_null_s_change_is_that_of_the_model_with_the_delta_in_place(first, reference, tiny_sae):
    from sae_lens import SAE

    sae, held = SAE.load_from_disk(tiny_sae, device="cpu"), role_rows(first, "heldout")
    norms = {row["module"]: row["norm"] for row in first.table("prediction", "layers") if row["norm"]}
    weights = dict(reference.named_parameters())

    def mean() -> torch.Tensor:
        with torch.no_grad():
            chosen = [
                sae.encode(
                    reference(torch.tensor([row["input_ids"]]), output_hidden_states=True).hidden_states[1][0][
                        torch.tensor([False, *row["loss_mask"][1:]])
                    ]
                )
                for row in held
            ]
        return torch.cat(chosen).mean(0)

    before = mean()
    for name, change in null_delta(weights, norms, 2, 1, 0).items():
        assert float(change.norm()) == pytest.approx(norms[name], rel=1e-4)
        weights[name].data += change
    torch.testing.assert_close(stored_nulls(first)["change"][1], mean() - before, rtol=1e-3, atol=1e-5)


def test_what_moves_exceeds_the_noise_of_rows_and_of_nulls(first):
    rows = first.table("sae_diff", "features")
    for row in rows:
        assert row["beyond_noise"] == (abs(row["z"]) > NOISE and abs(row["z_null"]) > NOISE)
        assert row["z"] == pytest.approx(row["change"] / row["error"] if row["error"] else 0.0)
        assert 0 <= row["fires_base"] <= 1 and (row["fires_base"] > 0) == (row["base"] > 0)
    still, far = torch.tensor([1.0, 9.0]), torch.tensor([9.0, 9.0])
    assert beyond_noise(far, still).tolist() == [False, True] == beyond_noise(still, far).tolist()
    assert beyond_noise(still, None).tolist() == [False, True]
