"""A model for a while at other weights, in one thread alone."""

from __future__ import annotations

import threading

import pytest
import torch

from foretune.tasks.loading import ModelSettings, at_weights, load_model


def logits(loaded, ids):
    with torch.no_grad():
        return loaded.model(input_ids=ids).logits.clone()


def test_inside_the_block_the_weights_are_moved_and_afterwards_they_are_what_they_were(tiny_llama):
    loaded = load_model(tiny_llama, ModelSettings(name_or_path=str(tiny_llama)))
    ids = torch.arange(6)[None]
    names = [name for name, _ in loaded.model.named_parameters() if "q_proj" in name or "embed" in name]
    torch.manual_seed(0)
    delta = {name: 0.1 * torch.randn_like(loaded.weight(name)) for name in names}
    base, tensors = logits(loaded, ids), {name: loaded.weight(name) for name in names}
    kept = {name: tensor.clone() for name, tensor in tensors.items()}
    seen = {}

    def elsewhere():
        seen["logits"] = logits(load_model(tiny_llama, ModelSettings(name_or_path=str(tiny_llama))), ids)

    with at_weights(loaded, delta) as moved:
        there = logits(moved, ids)
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        if loaded.config.tie_word_embeddings:
            assert loaded.model.get_output_embeddings().weight is loaded.model.get_input_embeddings().weight
    expected = torch.func.functional_call(
        loaded.model, {name: kept[name] + change for name, change in delta.items()}, (ids,)
    ).logits
    assert torch.equal(there, expected) and not torch.allclose(there, base)
    assert torch.equal(seen["logits"], base) and torch.equal(logits(loaded, ids), base)
    for name, tensor in tensors.items():
        assert loaded.model.get_parameter(name) is tensor and torch.equal(tensor, kept[name])


def test_an_error_inside_puts_the_weights_back(tiny_llama):
    loaded = load_model(tiny_llama, ModelSettings(name_or_path=str(tiny_llama)))
    name = next(name for name, _ in loaded.model.named_parameters() if "q_proj" in name)
    base = loaded.weight(name)
    with pytest.raises(RuntimeError, match="stop"), at_weights(loaded, {name: torch.ones_like(base)}):
        assert loaded.model.get_parameter(name) is not base
        raise RuntimeError("stop")
    assert loaded.model.get_parameter(name) is base
