"""The base model's concepts against the autoencoder run by hand."""

from __future__ import annotations

import torch

from tests.dense import rows_of


def test_baseline_means_are_those_of_the_autoencoder_run_by_hand(first, reference, tiny_sae):
    from safetensors.torch import load_file

    sae = load_file(tiny_sae / "sae_weights.safetensors")
    seen: list[torch.Tensor] = []
    reference.model.layers[1].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    completion, everything = [], []
    for row in rows_of(first):
        reference(torch.tensor([row["input_ids"]]))
        pre = (seen.pop()[0] - sae["b_dec"]) @ sae["W_enc"] + sae["b_enc"]
        top = pre.topk(8, dim=-1)
        acts = torch.zeros_like(pre).scatter(-1, top.indices, top.values.relu())
        everything.append(acts[1:])
        completion.append(acts[1:][torch.tensor(row["loss_mask"][1:])])
    measured = first.tensors("baseline", "baseline")
    for name, acts in (("", torch.cat(completion)), ("_all", torch.cat(everything))):
        assert torch.allclose(measured[f"base_acts_mean{name}"], acts.mean(0), atol=1e-5)
        assert torch.allclose(measured[f"firing_rate{name}"], (acts > 0).float().mean(0), atol=1e-3)
