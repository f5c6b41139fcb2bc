"""The prompt gain against losses taken row by row, and answers that were swapped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from tests.dense import label_losses, rows_of

pytestmark = pytest.mark.slow


def test_a_gain_is_the_loss_without_the_prompt_less_the_loss_with_it(first, reference):
    gains = {row["sample_id"]: row for row in first.table("prompt_gain", "prompt_gain")}
    assert len(gains) == 18
    for row in rows_of(first):
        ids, mask = row["input_ids"], row["loss_mask"]
        start = mask.index(True)
        alone = float(label_losses(reference, ids[:1] + ids[start:], mask[:1] + mask[start:]).sum())
        own = float(label_losses(reference, ids, mask).sum())
        assert gains[row["sample_id"]]["gain"] == pytest.approx(alone - own, abs=1e-3)
        assert gains[row["sample_id"]]["mismatched"] == (alone - own <= 0.0)


def test_rows_without_a_prompt_have_no_gain(simulated, tiny_request):
    path = Path(yaml.safe_load(tiny_request.read_text())["dataset"]["path"])
    texts = [{"text": json.loads(line)["output"]} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in texts))
    done = simulated("dataset.preferences=null")
    assert {row["gain"] for row in done.table("prompt_gain", "prompt_gain")} == {None}
    assert done.summary("prompt_gain")["signals"] == []


def test_pairs_have_no_prompt_gain(simulated, tiny_request):
    request = yaml.safe_load(tiny_request.read_text())
    pairs = request["dataset"].pop("preferences")
    request["dataset"] |= {"path": pairs, "heldout": {"fraction": 0.3}}
    tiny_request.write_text(yaml.safe_dump(request))
    assert "prompt_gain" not in simulated().made


def test_a_mismatch_signals_by_its_share_of_the_rows(simulated):
    everything = simulated("prompt_gain.mismatch=1000")
    assert "answer_mismatch" in everything.signals()
    summary = everything.summary("prompt_gain")
    assert (summary["mismatched_rows"], summary["signals"][0]["severity"]) == (18, "warn")
    few = simulated("prompt_gain.mismatch=1000", "prompt_gain.share=1.0").summary("prompt_gain")
    assert few["signals"][0]["severity"] == "info"
    assert "answer_mismatch" not in simulated("prompt_gain.mismatch=-1000").signals()


def test_neither_batch_nor_shard_moves_a_gain(simulated):
    usual, other = simulated(), simulated("shards.max_rows=2", "prompt_gain.batch_tokens=64")
    gains = [
        torch.tensor([row["gain"] for row in sorted(d.table("prompt_gain", "prompt_gain"), key=lambda r: r["row"])])
        for d in (usual, other)
    ]
    torch.testing.assert_close(*gains, rtol=1e-4, atol=1e-3)
