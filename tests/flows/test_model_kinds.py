"""Every kind of model and autoencoder that the README promises, through the whole DAG."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from foretune.flows.request import load_request
from foretune.flows.simulate import simulate
from foretune.storage.errors import BadInput
from foretune.storage.events import read_events
from foretune.storage.runs import Run
from foretune.tasks.engine.invariants import BrokenInvariant
from foretune.tasks.loading.folders import TokenLimits
from foretune.tasks.samples.dataset import check_limits

pytestmark = pytest.mark.slow


def test_a_full_fine_tune_moves_norms_biases_and_embeddings(simulated, folder_of):
    from transformers import AutoModelForCausalLM

    folder = folder_of("qwen2")
    model = AutoModelForCausalLM.from_pretrained(folder)
    done = simulated("sae=null", f"model.name_or_path={folder}", "adapter.method=full")
    layers = {row["module"]: row for row in done.table("prediction", "layers")}
    assert layers.keys() == dict(model.named_parameters()).keys()
    assert layers["model.layers.0.self_attn.v_proj.bias"]["norm"] > 0  # zero at the start: nothing to be relative to
    assert done.found.summary["heldout_loss_evaluated"] < done.found.summary["heldout_loss_base"]
    assert all(row["score"] for row in done.table("influence", "influence"))


@pytest.mark.parametrize("missing", ["weights pickled", "code of its own"])
def test_a_model_that_could_run_code_is_refused(simulated, tiny_llama, tmp_path, missing):
    from safetensors.torch import load_file

    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    if missing == "weights pickled":
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    else:
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": "own", "auto_map": {"AutoModelForCausalLM": "modeling.Own"}}
        (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match="pickle" if missing == "weights pickled" else "trust_remote_code"):
        simulated(f"model.name_or_path={folder}")


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (TokenLimits(vocabulary=None, positions=8), "8 positions; set dataset.max_length to 8 or less"),
        (TokenLimits(vocabulary=100, positions=None), "the model's vocabulary ends at 99"),
    ],
)
def test_rows_that_the_model_cannot_read_are_refused_before_it_is_opened(first, limits, said):
    rows = first.store.open(first.made["samples"]).arrow("samples.parquet")
    with pytest.raises(BadInput, match=said):
        check_limits(rows, limits, "train")


def without_output(tiny_llama: Path, folder: Path, layers: Sequence[int]) -> str:
    """The tiny model with the attention of some layers cut off: nothing reaches their q and v."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_llama, folder)
    tensors = load_file(folder / "model.safetensors")
    for layer in layers:
        tensors[f"model.layers.{layer}.self_attn.o_proj.weight"].zero_()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def test_dead_layers_spikes_and_backwards_pairs_are_signalled(simulated, tiny_llama, tmp_path):
    folder = without_output(tiny_llama, tmp_path / "half", [0])
    done = simulated(f"model.name_or_path={folder}", "training.max_grad_norm=0.01")
    assert {"dead_layer", "gradient_spike", "backwards_preference"} <= done.signals()
    assert done.summary("landscape")["dead_layers"] == [f"model.layers.0.self_attn.{m}_proj.weight" for m in "qv"]


def test_a_model_without_any_gradient_is_told_so_and_nothing_moves(simulated, tiny_llama, tmp_path):
    folder = without_output(tiny_llama, tmp_path / "dead", [0, 1])
    done = simulated("sae=null", f"model.name_or_path={folder}")
    assert "dead_layer" in done.signals()
    assert {row["score"] for row in done.table("influence", "influence")} == {0.0}
    assert all(float(delta.norm()) == 0 for delta in done.tensors("prediction", "delta").values())


def test_an_exact_hessian_may_diverge_and_then_ends_the_run_with_its_pass(prefect_server, tiny_request):
    request = load_request(str(tiny_request), ["curvature.curvature=hessian"])
    with pytest.raises(BrokenInvariant, match="negative curvature"):
        simulate(request, run_id="hessian")
    last = read_events(Run(request.runtime.root, "hessian"))[-1]
    assert last["type"] == "run_finished" and last["status"] == "failed"
    assert last["error"].startswith("influence_solve failed: BrokenInvariant")


def test_an_autoencoder_of_sparsify_and_every_source_of_labels(simulated, tmp_path):
    from safetensors.torch import save_file

    drawn = torch.Generator().manual_seed(0)
    folder = tmp_path / "layers.1"
    folder.mkdir()
    tensors = {name: torch.randn(64, 32, generator=drawn) for name in ("encoder.weight", "W_dec")}
    save_file(tensors | {"encoder.bias": torch.zeros(64), "b_dec": torch.zeros(32)}, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"d_in": 32, "num_latents": 64, "k": 8, "activation": "topk"}))
    (tmp_path / "export").mkdir()
    with gzip.open(tmp_path / "export" / "batch-0.jsonl.gz", "wt") as export:
        for layer in ("1-res", "2-res"):
            export.write(json.dumps({"modelId": "m", "layer": layer, "index": "0", "description": layer}) + "\n")
    (tmp_path / "labels.json").write_text(json.dumps({"0": "<b>bold</b>"}))

    def first_label(*overrides: str) -> tuple[str, set[str]]:
        done = simulated(f"sae.path={folder}", *overrides)
        return done.table("features", "features")[0]["label"], set(done.computed)

    lens, _ = first_label()
    assert lens
    export = f"sae.labels={tmp_path / 'export'}"
    assert first_label(f"sae.labels={tmp_path / 'labels.json'}")[0] == "<b>bold</b>"
    assert first_label(export, "sae.neuronpedia_id=m/1-res")[0] == "1-res"
    label, computed = first_label(export, "sae.neuronpedia_id=m/2-res")
    assert label == "2-res"
    assert computed == {"features", "concepts", "report"}
    with pytest.raises(BadInput, match=r"2 layers.*sae.neuronpedia_id"):
        first_label(export)


def test_recomputed_layers_and_half_precision_predict_what_float32_predicts(simulated, tmp_path):
    from foretune.tasks.numerics.agreement import cosine, norm_ratio

    two = ("prediction.anchors=2", "sae=null", "dataset.preferences=null")
    plain = simulated(*two)
    # Checkpointing moves no result, so that its numbers have to be asked for under another root.
    again = simulated(*two, "model.gradient_checkpointing=true", f"runtime.root={tmp_path / 'again'}")
    assert "landscape_shard" in again.computed and again.summary("prediction")["anchors"] == 2
    for name, delta in plain.tensors("prediction", "delta").items():
        torch.testing.assert_close(again.tensors("prediction", "delta")[name], delta, rtol=1e-3, atol=1e-6)
    half = simulated(*two, "model.dtype=bfloat16").tensors("prediction", "delta")
    assert cosine(half, plain.tensors("prediction", "delta")) > 0.95
    assert norm_ratio(half, plain.tensors("prediction", "delta")) == pytest.approx(1, abs=0.05)
