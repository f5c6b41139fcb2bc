"""`foretune export`: a folder of the predicted model, or of its adapter as peft loads it, that says what it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from foretune.flows.commands.export import export_adapter, export_checkpoint, export_gguf
from foretune.flows.request import load_request, to_yaml
from foretune.storage.errors import BadInput
from foretune.storage.runs import Run
from tests.dag import Simulated

pytestmark = pytest.mark.slow


@pytest.fixture
def finished(simulated, tiny_request):
    """The run of the tiny request with settings changed, with its request and its result."""

    def run_of(*overrides: str) -> Run:
        done: Simulated = simulated(*overrides)
        run, request = done.step.run, load_request(str(tiny_request), list(overrides))
        run.write_request(to_yaml(request))
        artifacts = {name: {"uri": ref.uri, "sha256": ref.sha256} for name, ref in done.made.items()}
        summary = done.summary("prediction")
        content = {"run_id": run.run_id, "request": request.model_dump(mode="json"), "summary": summary}
        run.write_result({**content, "artifacts": artifacts})
        return run

    return run_of


def merged_by_peft(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    return model.merge_and_unload().state_dict()


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param((), id="as it is"),
        pytest.param(("adapter.use_rslora=true", "adapter.r=4"), id="rank-stabilised"),
        pytest.param(("adapter.target_modules=all-linear",), id="all linear"),
        pytest.param(("prediction.rule=rayleigh",), id="closed form"),
        pytest.param(("prediction.max_relative_change=0.001",), id="clipped"),
    ],
)
def test_peft_merges_the_adapter_to_the_weights_of_the_checkpoint(finished, tiny_llama, tmp_path, settings):
    from transformers import AutoModelForCausalLM

    run = finished(*settings)
    files = export_adapter(run, str(tmp_path / "adapter"))
    assert files == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    export_checkpoint(run, str(tmp_path / "merged"))
    merged = merged_by_peft(tiny_llama, tmp_path / "adapter")
    predicted = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    base = AutoModelForCausalLM.from_pretrained(tiny_llama).state_dict()
    moved = [name for name in base if not torch.equal(base[name], predicted[name])]
    assert moved
    for name, weight in predicted.items():
        torch.testing.assert_close(merged[name], weight, atol=1e-6, rtol=1e-6)


def test_the_factors_are_those_that_the_recursion_moved(finished, tmp_path):
    """A began at the adapter's own start and moved a little; a factorisation of the product would be any other pair."""
    from safetensors.torch import load_file

    from foretune.storage.results import artifact_of
    from foretune.tasks.inputs.adapter_factors import stored_factors

    run = finished()
    stored = stored_factors(run.store.open(artifact_of(run, "path")))
    export_adapter(run, str(tmp_path / "adapter"))
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for name, (a, b) in stored.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        assert torch.equal(tensors[f"{module}.lora_A.weight"], a)
        assert torch.equal(tensors[f"{module}.lora_B.weight"], b)


def test_a_full_fine_tune_has_no_adapter_and_it_is_said_in_a_line(finished, tmp_path):
    run = finished("adapter.method=full")
    with pytest.raises(BadInput, match=r"has no adapter: it moves the weights themselves; export it without --adapter"):
        export_adapter(run, str(tmp_path / "adapter"))
    assert not (tmp_path / "adapter").exists()


def test_the_card_says_predicted_from_what_and_how_far_trusted(finished, tmp_path, tiny_llama):
    run = finished()
    export_checkpoint(run, str(tmp_path / "merged"))
    card = (tmp_path / "merged" / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    assert json.loads(front)["base_model"] == str(tiny_llama)
    for part in ("Predicted, not trained", run.run_id, "Trusted:", "learning_rate 0.001", "Licence"):
        assert part in text


def test_a_predicted_model_as_a_gguf_file_says_the_same_and_what_it_is(finished, tmp_path):
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM

    run, file = finished(), tmp_path / "out.gguf"
    assert export_gguf(run, str(file), "f32") == file.stat().st_size
    export_checkpoint(run, str(tmp_path / "folder"))
    ids = torch.arange(1, 200, 7).reshape(1, -1)
    both = [
        AutoModelForCausalLM.from_pretrained(folder, **where).eval()
        for folder, where in ((tmp_path, {"gguf_file": file.name}), (tmp_path / "folder", {}))
    ]
    with torch.no_grad():
        first, second = (model(input_ids=ids).logits for model in both)
    torch.testing.assert_close(first, second, atol=1e-6, rtol=0)
    fields = GGUFReader(file).fields
    assert fields["foretune.run"].contents() == run.run_id
    assert fields["foretune.note"].contents() == "predicted, not trained"
    with pytest.raises(BadInput, match="exists; give another name"):
        export_gguf(run, str(file))
