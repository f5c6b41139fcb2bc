"""Concepts taken back in the tiny run, worked out again by transformers alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.dag import Simulated
from tests.dense import label_losses, role_rows


def test_a_concept_taken_back_is_its_decoder_row_subtracted_where_the_sae_reads(
    first: Simulated, reference: Any, tiny_sae: Any
) -> None:
    from sae_lens import SAE
    from transformers import AutoModelForCausalLM

    sae = SAE.load_from_disk(tiny_sae, device="cpu")
    rows = first.table("concept_causes", "causes")
    measured = {row["feature"]: row for row in first.table("sae_diff", "features")}
    moved = sorted((row for row in measured.values() if abs(row["z"]) > 3), key=lambda row: -abs(row["change"]))
    assert [row["feature"] for row in rows] == [row["feature"] for row in moved[:10]]
    checkpoint = AutoModelForCausalLM.from_pretrained(first.store.open(first.made["checkpoint"]).folder())
    seen: list[torch.Tensor] = []
    taken: list[torch.Tensor] = []

    def hook(module: Any, args: Any, kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        seen.append(hidden)
        changed = hidden - taken[0] if taken else hidden
        return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": changed})

    for model in (reference, checkpoint):
        model.model.layers[1].register_forward_pre_hook(hook, with_kwargs=True)
    feature, sums = rows[0]["feature"], torch.zeros(3, dtype=torch.float64)
    tokens = 0
    with torch.no_grad():
        for row in role_rows(first, "heldout"):
            ids, mask = row["input_ids"], row["loss_mask"]
            taken.clear()
            seen.clear()
            base, predicted = (label_losses(each, ids, mask) for each in (reference, checkpoint))
            active = [sae.encode(each)[..., feature] for each in seen]
            excess = active[1] - active[0]
            excess[:, 0] = 0
            taken.append(excess[..., None] * sae.W_dec[feature])
            without = label_losses(checkpoint, ids, mask)
            sums += torch.stack([each.double().sum() for each in (base, predicted, without)])
            tokens += len(base)
    effect, change = float(sums[2] - sums[1]) / tokens, float(sums[0] - sums[1]) / tokens
    assert rows[0]["effect"] == pytest.approx(effect, rel=1e-2, abs=1e-7)
    assert rows[0]["share"] == pytest.approx(effect / change, rel=2e-2, abs=1e-4)
    summary = first.summary("concept_causes")
    assert summary["loss_base"] == pytest.approx(float(sums[0]) / tokens, rel=1e-4)
    assert summary["carrying"] == sum(row["verdict"] != "nothing" for row in rows)
    for row in rows:
        sure = row["low"] > 0 or row["high"] < 0
        assert (row["verdict"] != "nothing") == (sure and abs(row["effect"]) > row["random"])
