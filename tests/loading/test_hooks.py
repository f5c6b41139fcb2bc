"""Hook points are the places that TransformerLens means, and a forward ends where it is told to."""

from __future__ import annotations

import pytest
import torch

from foretune.storage.errors import BadInput
from foretune.tasks.loading import functional_caller, load_model
from foretune.tasks.loading.hooks import captured_residuals, hook_point, parse_block_hook, run_to_hook, run_to_hooks
from tests.conftest import write_tokenizer
from tests.loading.conftest import settings

SEQUENTIAL = ["llama", "gpt2", "qwen2", "gemma2"]
FAMILIES = [*SEQUENTIAL, "gpt_neox"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_residual_stream_is_what_the_library_calls_hidden_states(opened, family, batch):
    loaded = opened(family)
    with torch.no_grad():
        states = loaded.model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states
    assert torch.equal(run_to_hook(loaded, batch, "blocks.0.hook_resid_pre"), states[0])
    assert torch.equal(run_to_hook(loaded, batch, "blocks.1.hook_resid_pre"), states[1])
    assert torch.equal(run_to_hook(loaded, batch, "blocks.0.hook_resid_post"), states[1])


@pytest.mark.parametrize("family", SEQUENTIAL)
@pytest.mark.parametrize("layer", [0, 1])
def test_attention_and_mlp_add_up_to_the_residual_stream(opened, family, layer, batch):
    """TransformerLens's definition: mid = pre + attn_out, post = mid + mlp_out, with Gemma's extra norms."""
    at = {
        hook: run_to_hook(opened(family), batch, f"blocks.{layer}.hook_{hook}")
        for hook in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
    }
    torch.testing.assert_close(at["resid_pre"] + at["attn_out"], at["resid_mid"])
    torch.testing.assert_close(at["resid_mid"] + at["mlp_out"], at["resid_post"])


def test_a_parallel_block_adds_both_to_its_input_and_has_no_middle(opened, batch):
    at = {
        hook: run_to_hook(opened("gpt_neox"), batch, f"blocks.1.hook_{hook}")
        for hook in ("resid_pre", "attn_out", "mlp_out", "resid_post")
    }
    torch.testing.assert_close(at["resid_pre"] + at["attn_out"] + at["mlp_out"], at["resid_post"])
    with pytest.raises(BadInput, match=r"GPTNeoXForCausalLM has no such place in its layers; name a module"):
        run_to_hook(opened("gpt_neox"), batch, "blocks.1.hook_resid_mid")


@pytest.mark.parametrize(
    ("family", "projection"),
    [
        ("llama", "model.layers.1.self_attn.o_proj"),
        ("gpt2", "transformer.h.1.attn.c_proj"),
        ("gpt_neox", "gpt_neox.layers.1.attention.dense"),
    ],
)
def test_hook_z_is_what_the_output_projection_reads(opened, family, projection, batch):
    loaded = opened(family)
    z = run_to_hook(loaded, batch, "blocks.1.attn.hook_z")
    torch.testing.assert_close(
        loaded.model.get_submodule(projection)(z), run_to_hook(loaded, batch, "blocks.1.hook_attn_out")
    )


def test_a_module_path_means_its_output_with_or_without_the_prefix(opened, batch):
    loaded = opened("llama")
    expected = run_to_hook(loaded, batch, "blocks.1.hook_resid_post")
    for name in ("model.layers.1", "layers.1"):
        assert torch.equal(run_to_hook(loaded, batch, name), expected)
    assert torch.equal(
        run_to_hook(opened("gpt2"), batch, "h.0.mlp"),
        run_to_hook(opened("gpt2"), batch, "blocks.0.hook_mlp_out"),
    )


def test_the_forward_ends_at_the_hook(opened, batch):
    loaded, ran = opened("llama"), []
    watched = {"layer 0": "model.layers.0", "layer 1": "model.layers.1", "head": "lm_head"}
    handles = [
        loaded.model.get_submodule(path).register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, path in watched.items()
    ]
    try:
        run_to_hook(loaded, batch, "blocks.1.hook_resid_pre")
    finally:
        for handle in handles:
            handle.remove()
    assert ran == ["layer 0"]


@pytest.mark.parametrize("family", FAMILIES)
def test_one_forward_gives_every_hook_what_a_forward_of_its_own_gives(opened, family, batch):
    loaded, ran = opened(family), []
    names = ["hook_mlp_out", "hook_resid_post", "attn.hook_z", "hook_resid_pre"]
    hooks = [f"blocks.{layer}.{name}" for layer in (1, 0) for name in names if (layer, name) != (1, "hook_resid_post")]
    alone = {hook: run_to_hook(loaded, batch, hook) for hook in hooks}
    watched = loaded.model.get_input_embeddings().register_forward_hook(lambda *_: ran.append("forward"))
    try:
        together = run_to_hooks(loaded, batch, hooks)
    finally:
        watched.remove()
    assert ran == ["forward"] and together.keys() == alone.keys()
    assert all(torch.equal(together[hook], alone[hook]) for hook in hooks)


def test_what_later_modules_write_in_place_is_not_seen(tmp_path, batch):
    """Falcon's blocks add what attention writes to the MLP's output."""
    from transformers import FalconConfig, FalconForCausalLM

    shape = {"vocab_size": 259, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    FalconForCausalLM(FalconConfig(**shape, bos_token_id=257, eos_token_id=258)).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    loaded = load_model(tmp_path, settings(tmp_path))
    hooks = ["blocks.0.hook_mlp_out", "blocks.0.hook_resid_post"]
    together = run_to_hooks(loaded, batch, hooks)
    assert all(torch.equal(together[hook], run_to_hook(loaded, batch, hook)) for hook in hooks)


def test_stopping_leaves_no_hook_behind(opened, batch):
    loaded = opened("llama")
    before = [(len(each._forward_hooks), len(each._forward_pre_hooks)) for each in loaded.model.modules()]
    run_to_hook(loaded, batch, "blocks.0.hook_resid_pre")
    with pytest.raises(ValueError, match=r"no parameter"):
        functional_caller(loaded, ["nothing"])
    assert functional_caller(loaded, [])({}, batch).shape == (3, 9, 259)
    after = [(len(each._forward_hooks), len(each._forward_pre_hooks)) for each in loaded.model.modules()]
    assert after == before


def test_activations_are_differentiable_in_given_weights(opened, batch):
    loaded, name = opened("llama"), "model.layers.0.mlp.down_proj.weight"
    weight = loaded.weight(name).detach()
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))

    def resid(w):
        return run_to_hook(loaded, batch, "blocks.1.hook_resid_pre", {name: w})

    _, forward = torch.func.jvp(resid, (weight,), (direction,))
    # The residual stream after layer 0 is linear in that layer's down projection.
    torch.testing.assert_close(forward, resid(weight + direction) - resid(weight), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("hook", ["blocks.1.hook_resid_pre", "blocks.0.hook_resid_mid", "model.layers.1"])
@pytest.mark.parametrize("trained", [[], ["model.layers.0.self_attn.q_proj.weight"]])
def test_residual_gradients_are_those_of_a_shift_of_the_stream(opened, hook, trained, batch):
    """d loss / d resid, held against the loss's change when the hooked module's tensor is really shifted."""
    loaded = opened("llama")
    call = functional_caller(loaded, trained)
    weights = {name: loaded.weight(name).detach().clone().requires_grad_() for name in trained}

    def loss():
        return call(weights, batch).logsumexp(-1)[:, :4].sum()

    with captured_residuals(loaded, hook) as residuals:
        total = loss()
        [resid] = residuals()
        gradients = torch.autograd.grad(total, [*weights.values(), resid])
        assert residuals() == []
    shift = 1e-2 * torch.randn(resid.shape, generator=torch.Generator().manual_seed(0))
    point = hook_point(loaded.model, hook)

    def moved(sign):
        def change(tensor):
            return tensor + sign * shift

        if point.kind == "input":
            handle = _shift_stream(point.module, loaded, hook, change)
        else:
            handle = point.module.register_forward_hook(lambda module, args, output: change(output))
        try:
            with torch.no_grad():
                return loss()
        finally:
            handle.remove()

    difference = (moved(1) - moved(-1)) / 2
    torch.testing.assert_close((gradients[-1] * shift).sum(), difference, rtol=0.02, atol=1e-3)


def _shift_stream(module, loaded, hook, change):
    """Shift the stream itself, not only what this module reads of it: at the module that wrote it last."""
    if hook.endswith("resid_pre"):
        return loaded.model.model.layers[0].register_forward_hook(lambda m, args, output: change(output))
    attention = loaded.model.model.layers[0].self_attn
    return attention.register_forward_hook(lambda m, args, output: (change(output[0]), *output[1:]))


def test_every_forward_is_captured_in_order(opened, batch):
    loaded = opened("llama")
    call = functional_caller(loaded, [])
    with captured_residuals(loaded, "blocks.1.hook_resid_pre") as residuals:
        call({}, batch), call({}, batch)
        first, second = residuals()
    assert first is not second and torch.equal(first, second) and first.requires_grad
    call({}, batch)
    assert residuals() == []


def test_without_a_hook_nothing_is_captured(opened, batch):
    with captured_residuals(opened("llama"), None) as residuals:
        functional_caller(opened("llama"), [])({}, batch)
        assert list(residuals()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blocks.1.hook_resid_pst", "unknown; the nearest are blocks.1.hook_resid_post"),
        ("blocks.7.hook_resid_pre", "the model has 2 layers; the nearest is blocks.1.hook_resid_pre"),
        ("model.layer.1", r"no such module in LlamaForCausalLM; the nearest are model.layers.1"),
        ("block.1.hook_resid_pre", r"the nearest are .*blocks.1.hook_resid_pre"),
    ],
)
def test_an_unknown_hook_names_the_nearest(opened, batch, name, message):
    with pytest.raises(BadInput, match=message):
        run_to_hook(opened("llama"), batch, name)


def test_a_module_that_the_forward_never_passes_is_bad_input(opened, batch):
    with pytest.raises(BadInput, match=r"hook model.layers: the forward pass never reaches it"):
        run_to_hook(opened("llama"), batch, "model.layers")


def test_block_hooks_are_read_without_a_model():
    assert parse_block_hook("blocks.12.attn.hook_z") == (12, "attn.hook_z")
    assert parse_block_hook("model.layers.3") is None
