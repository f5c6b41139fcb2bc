"""SAEs compute what their libraries say they compute, on the activations that they were trained on."""

from __future__ import annotations

import pytest
import torch

from foretune.tasks.loading import building
from foretune.tasks.loading.hooks import run_to_hook

from .sae_folders import D_IN, D_SAE, K, opened_at, sae_lens_folder, sparsify_folder, weights


def top_k_by_sorting(pre):
    """Keep each row's K largest, written without topk."""
    kept = torch.zeros_like(pre)
    for row, values in enumerate(pre):
        for feature in sorted(range(len(values)), key=lambda i: -float(values[i]))[:K]:
            kept[row, feature] = values[feature]
    return kept


@pytest.mark.parametrize("rescale", [False, True])
def test_a_sae_lens_topk_sae_follows_its_formula(tmp_path, resid, rescale):
    sae, w = opened_at(sae_lens_folder(tmp_path / "sae", rescale_acts_by_decoder_norm=rescale)), weights()
    norms = w["W_dec"].norm(dim=1)
    pre = ((resid - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).view(-1, D_SAE) * (norms if rescale else 1)
    expected = top_k_by_sorting(pre.relu())
    acts = sae.encode(resid)
    torch.testing.assert_close(acts.view(-1, D_SAE), expected, atol=1e-4, rtol=1e-5)
    rebuilt = (expected / (norms if rescale else 1)) @ w["W_dec"] + w["b_dec"]
    torch.testing.assert_close(sae.decode(acts).view(-1, D_IN), rebuilt, atol=1e-3, rtol=1e-4)


def test_a_sparsify_sae_follows_its_formula(tmp_path, resid):
    sae, w = opened_at(sparsify_folder(tmp_path / "layers.1")), weights()
    pre = ((resid - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu().view(-1, D_SAE)
    expected = top_k_by_sorting(pre)
    acts = sae.encode(resid)
    torch.testing.assert_close(acts.view(-1, D_SAE), expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(
        sae.decode(acts).view(-1, D_IN), expected @ w["W_dec"] + w["b_dec"], atol=1e-3, rtol=1e-4
    )


def test_groupmax_keeps_the_largest_of_each_group(tmp_path, resid):
    sae, w = opened_at(sparsify_folder(tmp_path / "layers.1", activation="groupmax", k=6)), weights()
    pre = ((resid - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu().view(-1, D_SAE)
    for row, acts in enumerate(sae.encode(resid).view(-1, D_SAE)):
        for group in range(6):
            part = slice(8 * group, 8 * group + 8)
            assert float(acts[part].max()) == pytest.approx(float(pre[row, part].max()), abs=1e-4)
            assert int((acts[part] != 0).sum()) <= 1


def test_an_early_signed_sae_ranks_by_magnitude(tmp_path, resid):
    sae, w = opened_at(sparsify_folder(tmp_path / "layers.1", signed=True)), weights()
    pre = ((resid - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).view(-1, D_SAE)
    expected = pre.sign() * top_k_by_sorting(pre.abs())
    torch.testing.assert_close(sae.encode(resid).view(-1, D_SAE), expected, atol=1e-4, rtol=1e-5)
    assert float(expected.min()) < 0


@pytest.mark.parametrize(
    "make",
    [
        lambda path: sae_lens_folder(path / "sae"),
        lambda path: sae_lens_folder(path / "sae", rescale_acts_by_decoder_norm=True),
        lambda path: sae_lens_folder(path / "sae", architecture="standard"),
        lambda path: sparsify_folder(path / "layers.1"),
    ],
)
def test_decoder_rows_are_what_one_unit_of_a_feature_adds(tmp_path, make):
    sae = opened_at(make(tmp_path))
    jacobian = sae.decode(torch.eye(D_SAE)) - sae.decode(torch.zeros(1, D_SAE))
    torch.testing.assert_close(sae.W_dec, jacobian, atol=1e-5, rtol=1e-5)
    assert (sae.d_in, sae.d_sae) == (D_IN, D_SAE)


def test_derivatives_pass_through_encode(tmp_path, resid):
    for folder in (sae_lens_folder(tmp_path / "sae"), sparsify_folder(tmp_path / "layers.1")):
        sae = opened_at(folder)
        direction = torch.randn(resid.shape, generator=torch.Generator().manual_seed(1))
        _, change = torch.func.jvp(sae.encode, (resid,), (direction,))
        step = 1e-4
        difference = (sae.encode(resid + step * direction) - sae.encode(resid - step * direction)) / (2 * step)
        assert (change - difference).norm() < 0.02 * change.norm()


def test_centring_takes_each_token_s_mean_away(tmp_path, resid):
    folder = sae_lens_folder(tmp_path / "sae")
    plain, centred = opened_at(folder), opened_at(folder, centre="on")
    shifted = resid + torch.randn(4, 7, 1, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(centred.encode(shifted), centred.encode(resid), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(plain.encode(shifted), plain.encode(resid), atol=1e-2)
    torch.testing.assert_close(centred.target(resid).mean(-1), torch.zeros(4, 7), atol=1e-6, rtol=0)
    assert torch.equal(plain.target(resid), resid)


def test_an_sae_says_itself_whether_it_was_trained_on_centred_activations(tmp_path):
    metadata = {
        "hook_name": "blocks.1.hook_resid_pre",
        "sae_lens_version": "6.0.0",
        "model_from_pretrained_kwargs": {"center_writing_weights": True},
    }
    folder = sae_lens_folder(tmp_path / "sae", metadata=metadata)
    assert opened_at(folder).config.centred
    assert not opened_at(folder, centre="off").config.centred


def test_half_precision_activations_are_read_in_float32(tmp_path, resid):
    sae = opened_at(sae_lens_folder(tmp_path / "sae"))
    assert sae.encode(resid.bfloat16()).dtype == torch.float32


def test_weights_stored_in_half_precision_open_in_float32(tmp_path):
    halves = {name: tensor.bfloat16() for name, tensor in weights().items()}
    sae = opened_at(sae_lens_folder(tmp_path / "sae", halves))
    assert sae.W_dec.dtype == torch.float32
    torch.testing.assert_close(sae.W_dec, halves["W_dec"].float())


def test_hook_z_saes_take_the_heads_side_by_side(tmp_path, opened, batch):
    metadata = {"hook_name": "blocks.1.attn.hook_z", "sae_lens_version": "6.0.0"}
    sae = opened_at(sae_lens_folder(tmp_path / "sae", reshape_activations="hook_z", metadata=metadata))
    z = run_to_hook(opened("llama"), batch, sae.hook_name)
    assert sae.decode(sae.encode(z)).shape == z.shape == (3, 9, 32)


def test_run_time_normalisation_is_undone_by_decode(tmp_path, resid):
    sae = opened_at(sae_lens_folder(tmp_path / "sae", normalize_activations="layer_norm"))
    w = weights()
    mean, std = resid.mean(-1, keepdim=True), resid.std(-1, keepdim=True)
    acts = sae.encode(resid)
    expected = (acts @ w["W_dec"] + w["b_dec"]) * std + mean
    torch.testing.assert_close(sae.decode(acts), expected, atol=1e-3, rtol=1e-4)


def test_no_model_is_built_while_an_sae_is(tmp_path, monkeypatch):
    from sae_lens import SAE

    opened, locked = SAE.load_from_disk, []
    monkeypatch.setattr(SAE, "load_from_disk", lambda *a, **k: locked.append(building._is_owned()) or opened(*a, **k))
    opened_at(sae_lens_folder(tmp_path / "sae"))
    assert locked == [True]
