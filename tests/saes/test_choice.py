"""`sae: auto`: which SAE of sae-lens's directory is read for a model, and what is said where there is none."""

from __future__ import annotations

import pydantic
import pytest

from foretune.flows.request import load_request
from foretune.storage.errors import BadInput
from foretune.tasks.inputs.sources import resolve_sources
from foretune.tasks.loading.folders import ModelOutline
from foretune.tasks.saes import SaeSettings, chosen_sae

AUTO = SaeSettings.model_validate("auto")


@pytest.mark.parametrize(
    ("model", "outline", "release", "sae_id"),
    [
        ("google/gemma-2-2b", (2304, 26), "gemma-scope-2b-pt-res-canonical", "layer_13/width_16k/canonical"),
        ("google/gemma-2-9b-it", (3584, 42), "gemma-scope-9b-it-res-canonical", "layer_20/width_16k/canonical"),
        ("/cache/models--google--gemma-3-1b-pt/snapshots/0a", (1152, 26), "gemma-scope-2-1b-pt-res",
         "layer_13_width_16k_l0_medium"),
        ("meta-llama/Meta-Llama-3.1-8B", (4096, 32), "llama_scope_lxr_8x", "l16r_8x"),
        ("./models/gpt2/", (768, 12), "gpt2-small-res-jb-feature-splitting", "blocks.8.hook_resid_pre_24576"),
    ],
)  # fmt: skip
def test_a_residual_hook_of_the_middle_third_and_the_smallest_wide_dictionary(model, outline, release, sae_id):
    found = chosen_sae(AUTO, model, ModelOutline(*outline))
    assert found is not None and (found.release, found.sae_id) == (release, sae_id)
    assert outline[1] / 3 <= found.layer <= 2 * outline[1] / 3 and "resid" in found.hook


def test_a_hook_that_is_named_is_kept_and_what_is_pickled_or_a_transcoder_is_left_out():
    mlp = chosen_sae(SaeSettings(release="auto", hook_name="blocks.3.hook_mlp_out"), "google/gemma-2-2b", None)
    assert mlp is not None and mlp.hook_name == "blocks.3.hook_mlp_out" and "mlp" in mlp.release
    outline = ModelOutline(2048, 28)
    assert chosen_sae(AUTO, "Qwen/Qwen3-1.7B-Base", outline) is None
    pickled = chosen_sae(SaeSettings(release="auto", allow_pickle=True), "Qwen/Qwen3-1.7B-Base", outline)
    assert pickled is None or "qwen-scope" in pickled.release
    assert chosen_sae(AUTO, "Qwen/Qwen3-0.6B", ModelOutline(1024, 28)) is None  # transcoders alone


@pytest.mark.parametrize("how", ["sae=auto", "sae={release: auto}"])
def test_a_model_without_an_entry_is_one_line_and_no_fault(tiny_request, how):
    request = load_request(str(tiny_request), [how])
    found = resolve_sources(request.dataset, request.model, request.sae)
    assert found.sae is None and found.saes_read["saes"] == []
    assert "has no SAE of" in found.sae_line and "set sae.path or sae.release" in found.sae_line


def test_the_choice_is_said_and_a_hub_that_cannot_be_reached_is_one_line(tiny_request, tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    request = load_request(str(tiny_request), ["sae=auto"])
    named = tmp_path / "gpt2"
    named.symlink_to(request.model.name_or_path)
    model = request.model.model_copy(update={"name_or_path": str(named)})
    with pytest.raises(BadInput, match=r"sae.release jbloom/\S+: the hub cannot be reached and its cache has no copy"):
        resolve_sources(request.dataset, model, request.sae)


def test_auto_takes_no_id_and_no_folder():
    for more in ({"sae_id": "x"}, {"path": "y"}):
        with pytest.raises(pydantic.ValidationError, match=r"release auto is chosen for the model"):
            SaeSettings(release="auto", **more)
