"""The loaded model: frozen, shared within a process, and a function of its weights."""

from __future__ import annotations

import shutil
import threading

import pytest
import torch

from foretune.tasks.loading import functional_caller, load_model
from foretune.tasks.loading.hooks import run_to_hook

from .conftest import settings

FAMILIES = ["llama", "gpt2", "qwen2", "gemma2", "gpt_neox"]
ATTENTION = {
    "llama": "model.layers.0.self_attn.q_proj.weight",
    "qwen2": "model.layers.0.self_attn.q_proj.weight",
    "gemma2": "model.layers.0.self_attn.q_proj.weight",
    "gpt2": "transformer.h.0.attn.c_attn.weight",
    "gpt_neox": "gpt_neox.layers.0.attention.query_key_value.weight",
}


def test_a_loaded_model_is_frozen_and_in_eval_mode(opened):
    loaded = opened("llama")
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert (loaded.device.type, loaded.dtype) == ("cpu", torch.float32)


def test_the_same_content_and_settings_open_once_per_thread(tiny_llama, llama_copy):
    first = load_model(tiny_llama, settings(tiny_llama))
    assert load_model(tiny_llama, settings(tiny_llama)) is first
    moved = load_model(llama_copy, settings(llama_copy))
    assert moved.weight("model.norm.weight").data_ptr() == first.weight("model.norm.weight").data_ptr()
    assert load_model(tiny_llama, settings(tiny_llama, dtype="bfloat16")).dtype == torch.bfloat16


def test_a_tokenizer_is_read_from_where_the_folder_is_now(tiny_llama, tmp_path):
    old = shutil.copytree(tiny_llama, tmp_path / "old")
    load_model(old, settings(old))
    new = old.rename(tmp_path / "new")
    assert load_model(new, settings(new)).tokenizer.eos_token == "<|im_end|>"


def test_threads_share_tensors_but_not_modules(tiny_llama, batch):
    """A forward that stops at a hook, and swapped weights, in one thread never reach another thread."""
    mine = load_model(tiny_llama, settings(tiny_llama))
    call = functional_caller(mine, [])
    expected = call({}, batch)
    name = "model.layers.0.mlp.up_proj.weight"
    others, stop, rounds = [], threading.Event(), []

    def disturb():
        theirs = load_model(tiny_llama, settings(tiny_llama))
        others.append(theirs)
        while not stop.is_set():
            run_to_hook(theirs, batch, "blocks.1.hook_resid_pre", {name: torch.zeros_like(theirs.weight(name))})
            rounds.append(1)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        same = [torch.equal(call({}, batch), expected) for _ in range(200)]
    finally:
        stop.set()
        thread.join()
    assert all(same) and rounds
    assert others[0].model is not mine.model
    assert others[0].weight(name).data_ptr() == mine.weight(name).data_ptr()


@pytest.mark.parametrize("family", FAMILIES)
def test_calling_with_the_base_weights_gives_the_library_s_logits(opened, folder_of, family, batch):
    from transformers import AutoModelForCausalLM

    loaded, name = opened(family), ATTENTION[family]
    reference = AutoModelForCausalLM.from_pretrained(folder_of(family), dtype=torch.float32).eval()
    with torch.no_grad():
        expected = reference(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    logits = functional_caller(loaded, [name])({name: loaded.weight(name)}, batch)
    seen = batch.attention_mask.bool()
    torch.testing.assert_close(logits[seen], expected[seen], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("change", [{"attn_implementation": "sdpa"}, {"device_map": "auto"}])
def test_other_kernels_and_placements_give_the_same_logits(tiny_llama, opened, batch, change):
    other = load_model(tiny_llama, settings(tiny_llama, **change))
    logits = functional_caller(other, [])({}, batch).cpu()
    seen = batch.attention_mask.bool()
    torch.testing.assert_close(
        logits[seen], functional_caller(opened("llama"), [])({}, batch)[seen], atol=2e-5, rtol=1e-4
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_does_not_move_a_row_s_logits(opened, family, batch):
    from foretune.tasks.numerics.batches import Batch

    call = functional_caller(opened(family), [])
    alone = Batch(batch.input_ids[2:, :4], batch.attention_mask[2:, :4], batch.labels[2:, :4])
    torch.testing.assert_close(call({}, batch)[2, :4], call({}, alone)[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_forward_and_reverse_derivatives_agree_with_differences(opened, family, batch):
    loaded, name = opened(family), ATTENTION[family]
    call = functional_caller(loaded, [name])
    weight = loaded.weight(name).detach()
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(weight.shape, generator=generator)
    direction /= direction.norm()
    cotangent = torch.randn(*batch.input_ids.shape, 259, generator=generator)

    def logits(w):
        return call({name: w}, batch)

    _, forward = torch.func.jvp(logits, (weight,), (direction,))
    leaf = weight.clone().requires_grad_()
    [reverse] = torch.autograd.grad((logits(leaf) * cotangent).sum(), leaf)
    step = 1e-2
    difference = (logits(weight + step * direction) - logits(weight - step * direction)) / (2 * step)
    assert (forward - difference).norm() < 0.01 * difference.norm()
    torch.testing.assert_close((forward * cotangent).sum(), (reverse * direction).sum(), rtol=1e-3, atol=1e-2)
    _, curvature = torch.func.jvp(torch.func.grad(lambda w: logits(w).logsumexp(-1).sum()), (weight,), (direction,))
    assert bool(torch.isfinite(curvature).all()) and float(curvature.norm()) > 0


def test_given_weights_leave_the_model_as_it_is(opened, batch):
    loaded, name = opened("llama"), ATTENTION["llama"]
    call = functional_caller(loaded, [name])
    before = call({}, batch)
    changed = call({name: torch.zeros_like(loaded.weight(name))}, batch)
    assert not torch.allclose(changed, before)
    assert torch.equal(call({}, batch), before)


def test_a_tied_weight_is_replaced_wherever_it_is_used(opened, batch):
    loaded, name = opened("llama"), "model.embed_tokens.weight"
    doubled = functional_caller(loaded, [name])({name: 2 * loaded.weight(name)}, batch)
    hidden = run_to_hook(loaded, batch, "norm", {name: 2 * loaded.weight(name)})
    torch.testing.assert_close(doubled, hidden @ (2 * loaded.weight(name)).T, atol=1e-4, rtol=1e-4)


def test_unknown_weight_names_are_refused(opened, batch):
    loaded = opened("llama")
    with pytest.raises(ValueError, match=r"model.nothing is no parameter of LlamaForCausalLM"):
        functional_caller(loaded, ["model.nothing"])
    with pytest.raises(ValueError, match=r"model.norm.weight is not among the 0 weights of this caller"):
        functional_caller(loaded, [])({"model.norm.weight": loaded.weight("model.norm.weight")}, batch)


def test_conv1d_weights_are_presented_out_by_in(opened):
    loaded = opened("gpt2")
    assert tuple(loaded.weight("transformer.h.0.attn.c_attn.weight").shape) == (96, 32)
    assert tuple(loaded.weight("transformer.h.1.mlp.c_fc.weight").shape) == (128, 32)
    assert len(loaded.transposed) == 8


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_the_logits_at_the_labels_are_those_of_the_whole_batch(opened, family):
    import torch

    from foretune.tasks.loading import label_caller
    from foretune.tasks.numerics.batches import collate
    from foretune.tasks.numerics.losses import label_positions

    loaded = opened(family)
    batch = collate([([5, 6, 7, 8], [-100, -100, 7, 8]), ([9, 10, 11], [-100, 10, 11])]).to(loaded.device)
    whole = functional_caller(loaded, [])({}, batch)
    torch.testing.assert_close(label_caller(loaded, [])({}, batch), whole[label_positions(batch.labels)])
    torch.testing.assert_close(functional_caller(loaded, [])({}, batch), whole)
