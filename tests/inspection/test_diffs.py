"""Both diffs against base model and predicted checkpoint opened by transformers, row by row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import kl_div

from tests.dense import label_losses, role_rows


@pytest.fixture
def checkpoint(first) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(first.store.open(first.made["checkpoint"]).folder())


def test_weight_norms_are_those_of_the_tensors_and_only_adapted_ones_moved(first, reference, checkpoint):
    rows = {row["module"]: row for row in first.table("model_diff", "layers")}
    new = dict(checkpoint.named_parameters())
    assert rows.keys() == new.keys()
    for name, weight in reference.named_parameters():
        change = float((new[name].detach() - weight).norm())
        assert rows[name]["norm_base"] == pytest.approx(float(weight.norm()), rel=1e-5)
        assert rows[name]["norm_new"] == pytest.approx(float(new[name].detach().norm()), rel=1e-5)
        assert rows[name]["delta_norm"] == pytest.approx(change, rel=1e-3, abs=1e-7)
        assert (change > 0) == name.endswith(("q_proj.weight", "v_proj.weight"))


def test_probes_are_scored_by_perplexity_and_divergence_under_both(first, reference, checkpoint):
    found = {row["text"]: row for row in first.table("model_diff", "probes")}
    probes = role_rows(first, "probes")
    assert len(found) == len(probes) == 2
    with torch.no_grad():
        for probe in probes:
            ids, mask = probe["input_ids"], torch.tensor(probe["loss_mask"][1:])
            row = found[probe["completion"]]
            for side, model in (("base", reference), ("new", checkpoint)):
                mean = label_losses(model, ids, probe["loss_mask"]).mean()
                assert row[f"perplexity_{side}"] == pytest.approx(float(mean.exp()), rel=1e-4)
            before, after = (
                m(torch.tensor([ids])).logits[0, :-1][mask].log_softmax(-1) for m in (reference, checkpoint)
            )
            divergence = kl_div(after, before, log_target=True, reduction="sum") / int(mask.sum())
            assert row["kl"] == pytest.approx(float(divergence), rel=1e-2, abs=1e-6)


def test_every_held_out_row_has_its_loss_under_both(first, reference, checkpoint):
    found = {row["sample_id"]: row for row in first.table("model_diff", "heldout")}
    held = role_rows(first, "heldout")
    assert found.keys() == {row["sample_id"] for row in held} and len(held) > 1
    for row in held:
        for side, model in (("base", reference), ("new", checkpoint)):
            losses = label_losses(model, row["input_ids"], row["loss_mask"])
            assert found[row["sample_id"]]["tokens"] == len(losses)
            assert found[row["sample_id"]][f"loss_{side}"] == pytest.approx(float(losses.detach().sum()), rel=1e-4)


def test_a_feature_moves_by_the_difference_of_its_means_on_label_tokens(first, reference, checkpoint, tiny_sae):
    from sae_lens import SAE

    sae, held = SAE.load_from_disk(tiny_sae, device="cpu"), role_rows(first, "heldout")

    def means(model: Any) -> torch.Tensor:
        chosen = []
        with torch.no_grad():
            for row in held:
                hidden = model(torch.tensor([row["input_ids"]]), output_hidden_states=True).hidden_states[1][0]
                chosen.append(sae.encode(hidden[torch.tensor([False, *row["loss_mask"][1:]])]))
        return torch.cat(chosen).mean(0)

    base, new = means(reference), means(checkpoint)
    rows = sorted(first.table("sae_diff", "features"), key=lambda row: row["feature"])
    for column, expected in (("base", base), ("new", new), ("change", new - base)):
        measured = torch.tensor([row[column] for row in rows], dtype=torch.float32)
        torch.testing.assert_close(measured, expected, rtol=1e-4, atol=1e-5)
    assert float((new - base).abs().max()) > 1e-4
