"""The residual stream's own change in the tiny run, worked out again by transformers alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from foretune.tasks.report.build import build_report
from foretune.tasks.report.page import gathered
from foretune.tasks.report.request_lines import RequestLines
from foretune.tasks.report.residual_change import residual_block, residual_lines
from tests.dag import Simulated
from tests.dense import role_rows


def test_the_mean_change_and_its_direction_are_those_of_the_two_models(first: Simulated, reference: Any) -> None:
    from transformers import AutoModelForCausalLM

    checkpoint = AutoModelForCausalLM.from_pretrained(first.store.open(first.made["checkpoint"]).folder())
    early, labels = [], []
    with torch.no_grad():
        for row in role_rows(first, "heldout"):
            ids = torch.tensor([row["input_ids"]])
            both = [model(ids, output_hidden_states=True).hidden_states[1][0] for model in (reference, checkpoint)]
            early.append((both[1] - both[0])[1:6])
            labels.append((both[1] - both[0])[torch.tensor([False, *row["loss_mask"][1:]])])
    lines = first.table("residual_change", "directions")
    directions = first.tensors("residual_change", "directions")["directions"]
    assert [(line["kind"], line["rank"]) for line in lines] == [
        ("first tokens", 1), ("direction", 1), ("direction", 2),
    ]  # fmt: skip
    mean = torch.cat(early).mean(0)
    torch.testing.assert_close(directions[0], mean / mean.norm(), rtol=1e-3, atol=1e-4)
    halves = [torch.cat(early[at::2]) for at in (0, 1)]
    turned = [part.mean(0) / part.mean(0).norm() for part in halves]
    change = sum(float((part @ other).sum()) for part, other in zip(halves, turned[::-1], strict=True))
    assert lines[0]["change"] == pytest.approx(change / sum(map(len, halves)), rel=1e-3)
    assert lines[0]["stability"] == pytest.approx(float(turned[0] @ turned[1]), abs=1e-3)
    largest = torch.linalg.svd(torch.cat(labels)).Vh[0]
    assert abs(float(largest @ directions[1])) == pytest.approx(1.0, abs=1e-3)
    assert all(line["promoted"] and line["suppressed"] and line["z_null"] is not None for line in lines)
    summary = first.summary("residual_change")
    assert summary["hook"] == "blocks.0.hook_resid_post" and summary["tokens"] == len(torch.cat(labels))


def test_a_run_without_an_sae_tells_it_and_one_with_an_sae_not_unless_asked(simulated: Any) -> None:
    bare = simulated("sae=null", "residual_change.when=without_sae")
    held = bare.store.open(bare.made["residual_change"])
    block = residual_block(held.arrow("directions.parquet").to_pylist(), held.json("summary.json"))
    assert len(residual_lines(block)) >= 1 and residual_lines(None) == []
    lines = RequestLines(
        name="n", dataset="d", rows=18, model="m", adapter="a", training="t", max_length=None, spike_norm=None
    )
    view = gathered(bare.step.run, bare.made, lines)
    page = build_report(view)
    assert "No sparse autoencoder reads this model" in page and "Along which directions" in page
    assert "Along which directions" not in build_report(dataclasses.replace(view, residual_change=None))
    assert "residual_change" not in simulated("residual_change.when=without_sae").made
