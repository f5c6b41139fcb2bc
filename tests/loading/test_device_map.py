"""A model that does not fit: layers on disk, fetched when they are used, give the same numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from foretune.storage.errors import BadInput
from foretune.tasks.loading import AdapterSettings, ModelSettings, functional_caller, load_model, target_weights
from tests.dag import Called, run_dag

SPLIT = {"device_map": "auto", "cpu_memory_gb": 8e-5}
"""Room for the embeddings and a part of the two layers."""
QUERY = "model.layers.1.self_attn.q_proj.weight"


def opened(folder: Path, **changes):
    return load_model(folder, ModelSettings(name_or_path=str(folder), **changes))


@pytest.fixture
def batch():
    from foretune.tasks.numerics.batches import collate

    return collate([([5, 6, 7, 8], [-100, 6, 7, 8]), ([9, 10, 11], [-100, 10, 11])])


@pytest.mark.slow
def test_a_whole_simulation_of_a_split_model_stores_the_same_numbers(write_tiny_request, tmp_path, monkeypatch):
    monkeypatch.setenv("FORETUNE_CACHE", str(tmp_path / "cache"))
    whole, split = tmp_path / "whole", tmp_path / "split"
    for folder in (whole, split):
        folder.mkdir()
    expected, _ = run_dag(write_tiny_request(whole), "circuits.prompts=0")  # of a split model none is traced
    split_up = [f"model.{name}={value}" for name, value in SPLIT.items()]
    step, _ = run_dag(write_tiny_request(split), *split_up, "circuits.prompts=0")
    assert step.computed == expected.computed
    assert stored(step) == stored(expected)


def stored(step: Called) -> list[tuple[str, str, str]]:
    """Task, key and content of every artefact; a report tells how long it took."""
    return [(ref.task, ref.key, ref.sha256) for task, ref in step.steps if task != "report"]


def test_losses_gradients_and_second_derivatives_are_those_of_the_whole_model(tiny_llama, batch):
    import torch

    whole, split = opened(tiny_llama), opened(tiny_llama, **SPLIT)
    away = {name for name, p in split.model.named_parameters() if p.is_meta}
    assert "model.layers.0.mlp.up_proj.weight" in away and "model.embed_tokens.weight" not in away
    results = []
    for loaded in (whole, split):
        weight = loaded.weight(QUERY).clone().requires_grad_()
        loss = functional_caller(loaded, [QUERY])({QUERY: weight}, batch).logsumexp(-1).mean()
        [gradient] = torch.autograd.grad(loss, weight, create_graph=True)
        [curved] = torch.autograd.grad(gradient.square().sum(), weight)
        results.append((loss, gradient, curved))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*results, strict=True))
    assert bool(results[0][2].any())


def test_what_was_away_is_away_again_after_a_call(tiny_llama, batch):
    split = opened(tiny_llama, **SPLIT)
    before = {name for name, p in split.model.named_parameters() if p.is_meta}
    functional_caller(split, [])({}, batch)
    assert before == {name for name, p in split.model.named_parameters() if p.is_meta} != set()


def test_forward_mode_derivatives_of_a_split_model_are_refused(tiny_llama, batch):
    import torch

    split = opened(tiny_llama, **SPLIT)
    weight = split.weight(QUERY)
    call = functional_caller(split, [QUERY])
    with pytest.raises(BadInput, match="tensors are fetched when they are used"):
        torch.func.jvp(lambda w: call({QUERY: w}, batch), (weight,), (torch.ones_like(weight),))


def test_a_full_fine_tune_of_a_split_model_is_refused(tiny_llama):
    adapter = AdapterSettings(method="full")
    with pytest.raises(BadInput, match="set adapter.method: lora"):
        target_weights(opened(tiny_llama, **SPLIT), adapter.targets)
