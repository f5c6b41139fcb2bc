"""Where SAEs come from, what is read before their weights, and every way in which a source can be wrong."""

from __future__ import annotations

import json
import subprocess
import sys

import pydantic
import pytest
import torch
from safetensors.torch import save_file

from foretune.storage.errors import BadInput
from foretune.tasks.saes import SaeSettings, check_fit, load_sae, read_sae_config, resolve_sae, sae_fingerprint
from foretune.tasks.saes.releases import find_release, release_names

from .sae_folders import D_IN, D_SAE, K, opened_at, sae_lens_folder, sparsify_folder, weights


def test_the_hook_point_comes_from_the_request_then_from_the_sae(tmp_path):
    lens, sparsify = sae_lens_folder(tmp_path / "sae"), sparsify_folder(tmp_path / "layers.1")
    assert opened_at(lens).hook_name == "blocks.1.hook_resid_pre"
    assert opened_at(lens, hook_name="model.layers.0").hook_name == "model.layers.0"
    assert opened_at(sparsify).hook_name == "layers.1"


def test_an_sae_opens_once_and_again_when_it_changes(tmp_path):
    folder = sae_lens_folder(tmp_path / "sae")
    first = opened_at(folder)
    assert opened_at(folder) is first
    before = sae_fingerprint(folder)
    sae_lens_folder(folder, weights(seed=5))
    assert sae_fingerprint(folder) != before
    assert not torch.equal(opened_at(folder).W_dec, first.W_dec)


def test_configurations_are_read_without_torch_or_sae_lens(tmp_path):
    folders = [sae_lens_folder(tmp_path / "sae"), sparsify_folder(tmp_path / "layers.1")]
    code = (
        "import sys; from pathlib import Path; from foretune.tasks.saes import *\n"
        "for name in sys.argv[1:]:\n"
        "    settings = SaeSettings(path=name)\n"
        "    config = read_sae_config(settings, resolve_sae(settings)); sae_fingerprint(Path(name))\n"
        "    print(config.format, config.d_in, config.d_sae, config.hook_name)\n"
        "SaeSettings(release='gpt2-small-res-jb', sae_id='blocks.8.hook_resid_pre')\n"
        "from foretune.tasks.saes.releases import find_release\n"
        "find_release('gpt2-small-res-jb', 'blocks.8.hook_resid_pre')\n"
        "assert not {'torch', 'sae_lens', 'transformers'} & set(sys.modules)"
    )
    seen = subprocess.run([sys.executable, "-c", code, *folders], check=True, capture_output=True, text=True)
    assert seen.stdout.split("\n")[:2] == [
        "sae_lens 32 48 blocks.1.hook_resid_pre",
        "sparsify 32 48 layers.1",
    ]


def test_older_sae_lens_folders_are_read(tmp_path, resid):
    """Before version 6 the hook name and the activation lay at the top level of cfg.json."""
    folder = sae_lens_folder(tmp_path / "sae")
    (folder / "cfg.json").write_text(
        json.dumps(
            {
                "architecture": "standard",
                "d_in": D_IN,
                "d_sae": D_SAE,
                "dtype": "torch.float32",
                "device": "cpu",
                "hook_name": "blocks.1.hook_resid_post",
                "hook_layer": 1,
                "model_name": "tiny",
                "activation_fn_str": "topk",
                "activation_fn_kwargs": {"k": K},
                "apply_b_dec_to_input": True,
                "normalize_activations": "none",
            }
        )
    )
    sae = opened_at(folder)
    assert sae.hook_name == "blocks.1.hook_resid_post"
    assert int((sae.encode(resid) != 0).sum(-1).max()) <= K


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """A hub cache with the release gpt2-small-res-jb, its SAEs replaced by small ones of the same format."""
    import huggingface_hub.constants

    commit, repository = "1" * 40, tmp_path / "models--jbloom--GPT2-Small-SAEs-Reformatted"
    sae_lens_folder(
        repository / "snapshots" / commit / "blocks.8.hook_resid_pre",
        architecture="standard",
        metadata={"hook_name": "blocks.8.hook_resid_pre", "sae_lens_version": "6.0.0"},
    )
    save_file(
        {"sparsity": torch.zeros(D_SAE)},
        repository / "snapshots" / commit / "blocks.8.hook_resid_pre" / "sparsity.safetensors",
    )
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_a_release_opens_from_the_hub_cache_and_is_centred_as_trained(hub_cache, resid):
    settings = SaeSettings(release="gpt2-small-res-jb", sae_id="blocks.8.hook_resid_pre", device="cpu")
    folder = resolve_sae(settings)
    sae, w = load_sae(settings, folder), weights()
    assert (sae.hook_name, sae.config.neuronpedia_id) == ("blocks.8.hook_resid_pre", "gpt2-small/8-res-jb")
    centred = resid - resid.mean(-1, keepdim=True)
    torch.testing.assert_close(
        sae.encode(resid), ((centred - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu(), atol=1e-4, rtol=1e-4
    )


def test_the_directory_of_releases_is_sae_lens_s_own():
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    directory = get_pretrained_saes_directory()
    assert set(release_names()) == set(directory)
    for release in list(directory)[::20]:
        sae_id, path = next(iter(directory[release].saes_map.items()))
        found = find_release(release, sae_id)
        assert (found.repo_id, found.path, found.conversion) == (
            directory[release].repo_id,
            path,
            directory[release].conversion_func,
        )


@pytest.mark.parametrize(
    ("release", "sae_id", "message"),
    [
        ("gpt2-small-res-bj", "x", r"sae-lens knows no such release; the nearest are gpt2-small-res-jb"),
        (
            "gpt2-small-res-jb",
            "blocks.8.hook_resid_pro",
            r"not in release gpt2-small-res-jb; the nearest are blocks.8",
        ),
        (
            "gpt2-small-res-jb",
            "blocks.3.hook_resid_pre",
            r"the hub cannot be reached and its cache has no copy",
        ),
        ("owner/saes", "layers.3", r"sae.release owner/saes: the hub cannot be reached"),
        ("gpt2-small-hook-z-kk", "blocks.0.hook_z", r"its weights are pickled, .* sae.allow_pickle"),
    ],
)
def test_a_release_that_cannot_be_had_is_one_line(tmp_path, monkeypatch, release, sae_id, message):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BadInput, match=message):
        resolve_sae(SaeSettings(release=release, sae_id=sae_id))


def test_a_width_that_does_not_fit_names_both_numbers(tmp_path, opened, batch, tiny_llama):
    sae = opened_at(sae_lens_folder(tmp_path / "sae", hook_name="blocks.0.hook_resid_pre"))
    with pytest.raises(
        BadInput, match=r"its d_in is 32, the model's activations at blocks.1.hook_resid_pre are 64 wide"
    ):
        sae.encode(torch.zeros(2, 64))
    wide = sae_lens_folder(tmp_path / "wide", d_in=40)
    settings = SaeSettings(path=str(wide))
    with pytest.raises(
        BadInput, match=r"its d_in is 40, the model's activations at blocks.1.hook_resid_pre are 32 wide"
    ):
        check_fit(read_sae_config(settings, wide), tiny_llama)


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        (
            "blocks.9.hook_resid_pre",
            "sae hook blocks.9.hook_resid_pre: the model has 2 layers; the nearest is blocks.1",
        ),
        ("blocks.1.hook_resid_pra", "unknown; the nearest are blocks.1.hook_resid_pre"),
    ],
)
def test_a_hook_that_the_model_lacks_is_seen_before_anything_runs(tmp_path, tiny_llama, hook, message):
    settings = SaeSettings(path=str(sae_lens_folder(tmp_path / "sae")), hook_name=hook)
    with pytest.raises(BadInput, match=message):
        check_fit(read_sae_config(settings, resolve_sae(settings)), tiny_llama)


def test_an_sae_that_fits_passes(tmp_path, tiny_llama):
    for name in (None, "model.layers.1", "blocks.0.attn.hook_z"):
        settings = SaeSettings(path=str(sae_lens_folder(tmp_path / "sae")), hook_name=name)
        check_fit(read_sae_config(settings, resolve_sae(settings)), tiny_llama)


BROKEN = [
    (
        lambda p: p.mkdir() or p,
        "no SAE; it needs cfg.json and one of sae_weights.safetensors, sae.safetensors",
    ),
    (lambda p: sae_lens_folder(p / "layer1").parent, "a folder of 1 SAEs; name one, for example layer1"),
    (
        lambda p: sae_lens_folder(p, metadata={"sae_lens_version": "6.0.0"}),
        "names no hook point; set sae.hook_name",
    ),
    (lambda p: sparsify_folder(p), "names no hook point; set sae.hook_name"),
    (lambda p: sae_lens_folder(p, d_in=None), "cfg.json does not say d_in"),
    (
        lambda p: sae_lens_folder(p, architecture="transcoder"),
        "a transcoder; give an SAE of one place in the model",
    ),
    (lambda p: sae_lens_folder(p, architecture="unheard-of"), "sae-lens cannot open it"),
    (
        lambda p: sae_lens_folder(p, d_sae=40),
        r"its decoder is \[48, 32\], cfg.json says \[40, 32\]|cannot open it",
    ),
    (
        lambda p: sae_lens_folder(p, normalize_activations="expected_average_only_in"),
        "its expected_average_only_in is not folded into the weights; fold it with sae-lens",
    ),
    (
        lambda p: sae_lens_folder(p, weights() | {"b_enc": torch.full((D_SAE,), float("nan"))}),
        "tensor b_enc has NaN or infinite values",
    ),
    (
        lambda p: sparsify_folder(p / "layers.1", transcode=True),
        "trained with transcode, so it does not rebuild",
    ),
    (lambda p: sparsify_folder(p / "layers.1", skip_connection=True), "trained with skip_connection"),
    (lambda p: sparsify_folder(p / "layers.1", activation="softmax"), "activation softmax is unknown"),
    (
        lambda p: sparsify_folder(p / "layers.1", num_latents=40),
        r"its decoder is \[48, 32\], cfg.json says \[40, 32\]",
    ),
]


@pytest.mark.parametrize(("make", "message"), BROKEN, ids=[message[:30] for _, message in BROKEN])
def test_what_is_no_usable_sae_is_one_line(tmp_path, make, message):
    with pytest.raises(BadInput, match=message):
        opened_at(make(tmp_path / "sae"))


def test_torn_sae_weights_are_bad_input(tmp_path):
    for folder, name in (
        (sae_lens_folder(tmp_path / "sae"), "sae_weights.safetensors"),
        (sparsify_folder(tmp_path / "layers.1"), "sae.safetensors"),
    ):
        (folder / name).write_bytes((folder / name).read_bytes()[:200])
        with pytest.raises(
            BadInput, match=r"sae-lens cannot open it|sae.safetensors is no sparsify SAE|not a whole safetensors file"
        ):
            opened_at(folder)


def test_a_missing_sae_folder_is_bad_input(tmp_path):
    with pytest.raises(BadInput, match=r"no such file or folder; check the path"):
        opened_at(tmp_path / "nothing")


@pytest.mark.parametrize(
    "source", [{}, {"release": "a"}, {"sae_id": "a"}, {"path": "a", "release": "b", "sae_id": "c"}]
)
def test_settings_name_exactly_one_source(source):
    with pytest.raises(pydantic.ValidationError, match=r"give sae.path, or"):
        SaeSettings(**source)
