"""The predicted checkpoint, opened by transformers: the base and the delta, and nothing else."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.slow


def test_the_checkpoint_opens_in_transformers_and_differs_in_the_adapted_weights_only(first, tiny_llama):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = first.store.open(first.made["checkpoint"]).folder()
    base = dict(AutoModelForCausalLM.from_pretrained(tiny_llama).named_parameters())
    new = dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
    moved = {name for name in base if not base[name].equal(new[name])}
    assert moved == {f"model.layers.{n}.self_attn.{m}_proj.weight" for n in (0, 1) for m in "qv"}
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<|im_end|>"


def test_gpt2_and_its_transposed_weights(simulated, folder_of):
    from transformers import AutoModelForCausalLM

    folder = folder_of("gpt2")
    done = simulated("sae=null", f"model.name_or_path={folder}", "adapter.target_modules=[c_attn]")
    base = AutoModelForCausalLM.from_pretrained(folder)
    new = AutoModelForCausalLM.from_pretrained(done.store.open(done.made["checkpoint"]).folder())
    for name, delta in done.tensors("prediction", "delta").items():
        moved = new.get_parameter(name) - base.get_parameter(name)
        assert torch.allclose(moved.T, delta, atol=1e-6) and float(delta.norm()) > 0
