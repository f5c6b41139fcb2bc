"""A loaded model counts its work."""

from __future__ import annotations

import pytest

from foretune.tasks.numerics.work import counted_work


@pytest.fixture
def loaded(opened):
    return opened("llama")


def test_a_forward_and_a_backward_are_counted_by_their_tokens(loaded, batch):
    import torch

    from foretune.tasks.loading.models import functional_caller

    name = "model.layers.0.self_attn.q_proj.weight"
    call = functional_caller(loaded, [name])
    tokens = batch.input_ids.numel()
    with counted_work() as work:
        call({name: loaded.weight(name)}, batch)
    assert (work.forward_tokens, work.backward_tokens) == (tokens, 0)
    weights = {name: loaded.weight(name).detach().clone().requires_grad_()}
    with counted_work() as work:
        total = call(weights, batch).float().sum()
        torch.autograd.grad(total, list(weights.values()), retain_graph=True)
        torch.autograd.grad(total, list(weights.values()))
    assert (work.forward_tokens, work.backward_tokens) == (tokens, 2 * tokens)


def test_a_curvature_product_counts_both_of_its_backwards(loaded, batch):
    from foretune.tasks.loading.models import functional_caller
    from foretune.tasks.numerics.graphs import GaussNewtonGraph

    name = "model.layers.1.self_attn.q_proj.weight"
    weights = {name: loaded.weight(name)}
    tokens = batch.input_ids.numel()
    with counted_work() as work:
        graph = GaussNewtonGraph(functional_caller(loaded, [name]), weights, batch)
        assert (work.forward_tokens, work.backward_tokens) == (tokens, tokens)
        graph.product({name: weights[name].detach()})
    assert (work.forward_tokens, work.backward_tokens) == (tokens, 3 * tokens)


@pytest.mark.parametrize(
    ("hook", "share"),
    [("blocks.0.hook_resid_pre", 0.0), ("blocks.0.hook_resid_post", 0.5), ("blocks.1.attn.hook_z", 1.0)],
)
def test_a_forward_that_ends_at_a_hook_counts_as_the_layers_that_ran(loaded, batch, hook, share):
    from foretune.tasks.loading.hooks import run_to_hook, share_to_hook

    assert share_to_hook(hook, 2) == share
    with counted_work() as work:
        run_to_hook(loaded, batch, hook)
    assert (work.forward_tokens, work.backward_tokens) == (round(share * batch.input_ids.numel()), 0)


def test_a_forward_to_several_hooks_counts_once_to_the_deepest(loaded, batch):
    from foretune.tasks.loading.hooks import run_to_hooks

    with counted_work() as work:
        run_to_hooks(loaded, batch, ["blocks.0.hook_resid_post", "blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre"])
    assert (work.forward_tokens, work.backward_tokens) == (round(0.5 * batch.input_ids.numel()), 0)


def test_a_backward_from_a_hook_counts_as_the_layers_below_it(loaded, batch):
    from foretune.tasks.loading.hooks import run_to_hook

    name = "model.layers.0.self_attn.q_proj.weight"
    weights = {name: loaded.weight(name).detach().clone().requires_grad_()}
    with counted_work() as work:
        run_to_hook(loaded, batch, "model.layers.0", weights).sum().backward()
    half = round(batch.input_ids.numel() / 2)
    assert (work.forward_tokens, work.backward_tokens) == (half, half)
