"""SAE folders that lie: one line before anything is computed."""

from __future__ import annotations

import json
import os

import pytest
import torch

from foretune.storage.errors import BadInput
from foretune.tasks.saes import SaeSettings, check_fit, check_weights, read_sae_config, resolve_sae, sae_fingerprint

from .sae_folders import D_IN, D_SAE, sae_lens_folder, sparsify_folder, weights

DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000


def looked_at(folder, **changes):
    """What `foretune plan` does with an SAE."""
    settings = SaeSettings(path=str(folder), device="cpu", **changes)
    found = resolve_sae(settings)
    sae_fingerprint(found)
    config = read_sae_config(settings, found)
    check_weights(config, found)
    return config


def with_text(name, text):
    def make(folder):
        (sae_lens_folder(folder) / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return folder

    return make


def linked(name):
    def make(folder):
        sae_lens_folder(folder)
        (folder / name).rename(folder.parent / name)
        (folder / name).symlink_to(folder.parent / name)
        return folder

    return make


def pipe(folder):
    sae_lens_folder(folder)
    os.mkfifo(folder / "sparsity.safetensors")
    return folder


HOSTILE = {
    "cfg list": (with_text("cfg.json", "[]"), r"cfg.json: holds a list where an object is expected"),
    "cfg null": (with_text("cfg.json", "null"), r"cfg.json: holds null"),
    "cfg deep": (with_text("cfg.json", DEEP), r"cfg.json: not valid JSON \(nested too deeply\)"),
    "cfg bytes": (with_text("cfg.json", b"\xff\xfe"), r"cfg.json: not valid JSON"),
    "cfg digits": (with_text("cfg.json", '{"d_in": ' + "9" * 5000 + "}"), r"cfg.json: not valid JSON"),
    "d_in text": (lambda p: sae_lens_folder(p, d_in="32"), r"cfg.json: d_in is '32'; input should be a valid integer"),
    "d_in true": (lambda p: sae_lens_folder(p, d_in=True), r"cfg.json: d_in is True"),
    "d_sae NaN": (lambda p: sae_lens_folder(p, d_sae=float("nan")), r"cfg.json: d_sae is nan"),
    "d_sae 1e12": (
        lambda p: sae_lens_folder(p, d_sae=10**12),
        r"cfg.json: d_sae is 1000000000000; input should be less",
    ),
    "d_sae absent": (lambda p: sae_lens_folder(p, d_sae=None), r"cfg.json does not say d_sae"),
    "d_sae other": (
        lambda p: sae_lens_folder(p, d_sae=10**9),
        r"its decoder is \[48, 32\], cfg.json says \[1000000000",
    ),
    "metadata list": (lambda p: sae_lens_folder(p, metadata=[1]), r"cfg.json: metadata is a list"),
    "hook number": (lambda p: sae_lens_folder(p, metadata={"hook_name": 3}), r"cfg.json: hook_name is 3"),
    "half emoji": (lambda p: sae_lens_folder(p, note="\ud83d"), r"note holds half of a surrogate pair"),
    "k of sparsify": (lambda p: sparsify_folder(p / "layers.1", k="5"), r"cfg.json: k is '5'"),
    "no size of sparsify": (
        lambda p: sparsify_folder(p / "layers.1", num_latents=0, expansion_factor=None),
        r"does not say d_sae",
    ),
    "weights linked": (linked("sae_weights.safetensors"), r"sae_weights.safetensors is a link to a file elsewhere"),
    "cfg linked": (linked("cfg.json"), r"cfg.json is a link to a file elsewhere"),
    "a pipe": (pipe, r"sparsity.safetensors is not a plain file"),
    "weights torn": (with_text("sae_weights.safetensors", b"\xff" * 20), r"not a whole safetensors file"),
    "int8": (
        lambda p: sae_lens_folder(p, weights() | {"W_dec": torch.ones(D_SAE, D_IN, dtype=torch.int8)}),
        r"tensor W_dec is stored as I8; give the SAE in a float dtype",
    ),
    "transcoder of old": (
        lambda p: sae_lens_folder(
            p, architecture="standard", is_transcoder=True, out_hook_point="blocks.1.hook_mlp_out"
        ),
        r"a transcoder \(.* to blocks.1.hook_mlp_out\); give an SAE of one place",
    ),
    "transcoder by its place": (
        lambda p: sae_lens_folder(p, hook_name="blocks.1.hook_resid_mid", hook_name_out="blocks.1.hook_mlp_out"),
        r"a transcoder",
    ),
    "transcoder by its width": (lambda p: sae_lens_folder(p, d_out=16), r"a transcoder"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_an_sae_that_lies_is_one_line(tmp_path, case):
    make, message = HOSTILE[case]
    with pytest.raises(BadInput, match=message) as raised:
        looked_at(make(tmp_path / "sae"))
    assert "; " in str(raised.value)


def test_a_place_that_is_written_to_may_be_the_one_that_is_read(tmp_path):
    hook = "blocks.1.hook_resid_pre"
    assert looked_at(sae_lens_folder(tmp_path / "sae", hook_name=hook, hook_name_out=hook, d_out=D_IN)).d_sae == D_SAE


def test_links_into_the_hub_cache_are_followed(tmp_path):
    whole = sae_lens_folder(tmp_path / "layer1")
    at = tmp_path / "models--owner--saes" / "snapshots" / ("0" * 40) / "layer1"
    blobs = at.parents[2] / "blobs"
    at.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(whole.iterdir())):
        (blobs / str(number)).write_bytes(file.read_bytes())
        (at / file.name).symlink_to(f"../../../blobs/{number}")
    assert looked_at(at).d_sae == D_SAE
    assert sae_fingerprint(at) == sae_fingerprint(whole)


def early(folder, **changes):
    """cfg.json of a sae-lens of before September 2024, which records no center_writing_weights."""
    sae_lens_folder(folder, weights())
    old = {"hook_point": "blocks.1.hook_resid_pre", "d_in": D_IN, "d_sae": D_SAE, "dtype": "torch.float32"} | changes
    (folder / "cfg.json").write_text(json.dumps(old))
    return folder


def test_an_early_sae_that_does_not_say_whether_weights_were_centred_asks(tmp_path, folder_of):
    folder = early(tmp_path / "sae")
    with pytest.raises(BadInput, match=r"does not say whether .* set sae.centre to on or off"):
        check_fit(looked_at(folder), folder_of("gpt2"))
    check_fit(looked_at(folder), folder_of("llama"))  # a model with RMSNorm cannot be centred
    for centre in ("on", "off"):
        config = looked_at(folder, centre=centre)
        check_fit(config, folder_of("gpt2"))
        assert config.centred is (centre == "on")
    told = early(tmp_path / "told", model_from_pretrained_kwargs={"center_writing_weights": True})
    check_fit(looked_at(told), folder_of("gpt2"))
    assert looked_at(told).centred
