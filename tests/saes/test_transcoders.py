"""What is no SAE of one place, as sae-lens itself writes it, is refused in one line; other folders are named too."""

from __future__ import annotations

import json

import pytest

from foretune.storage.errors import BadInput
from foretune.tasks.saes import SaeSettings, check_weights, read_sae_config, resolve_sae

from .sae_folders import opened_at, sae_lens_folder

KINDS = ("Transcoder", "SkipTranscoder", "JumpReLUTranscoder")


@pytest.mark.parametrize("kind", KINDS)
def test_a_transcoder_as_sae_lens_saves_it_is_one_line(tmp_path, kind):
    import sae_lens
    from sae_lens.saes.sae import SAEMetadata

    config = getattr(sae_lens, f"{kind}Config")
    metadata = SAEMetadata(hook_name="blocks.0.mlp.hook_in", hook_name_out="blocks.0.hook_mlp_out", model_name="tiny")
    coder = getattr(sae_lens, kind)(
        config(d_in=32, d_sae=16, d_out=32, apply_b_dec_to_input=False, metadata=metadata, device="cpu")
    )
    coder.save_model(tmp_path / "coder")
    with pytest.raises(BadInput, match=r"a \w*transcoder; give an SAE of one place in the model") as raised:
        opened_at(tmp_path / "coder")
    assert "\n" not in str(raised.value)


def test_a_crosscoder_is_one_line_before_its_weights_are_read(tmp_path):
    folder = sae_lens_folder(tmp_path / "cross", architecture="crosscoder")
    with pytest.raises(BadInput, match=r"a crosscoder; give an SAE of one place in the model"):
        opened_at(folder)
    folder = sae_lens_folder(tmp_path / "models")
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**config, "n_models": 2}))
    with pytest.raises(BadInput, match=r"a crosscoder of 2 models; give an SAE of one place in the model"):
        opened_at(folder)


def test_gemma_scope_s_own_folder_names_the_release_that_reads_it(tmp_path):
    (tmp_path / "params.npz").write_bytes(b"PK")
    with pytest.raises(BadInput, match=r"set sae.release to sae-lens's name of it, such as gemma-scope-2b"):
        resolve_sae(SaeSettings(path=str(tmp_path)))


def test_gemma_scope_s_release_is_configured_without_a_download(tmp_path):
    """Its configuration is made of names by sae-lens's own function; a width that the header denies is seen."""
    settings = SaeSettings(release="gemma-scope-2b-pt-res-canonical", sae_id="layer_20/width_16k/canonical")
    config = read_sae_config(settings, tmp_path)
    assert (config.hook_name, config.d_in, config.d_sae) == ("blocks.20.hook_resid_post", 2304, 16384)
    check_weights(config, tmp_path)
