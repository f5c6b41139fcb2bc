"""A folder written as a GGUF file is the same model: read back by transformers, against the folder itself."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from foretune.storage.errors import BadInput
from foretune.tasks.loading import convert_gguf
from foretune.tasks.loading.gguf_writing import write_gguf
from tests.conftest import tiny_config, write_tokenizer

from .test_conversion import gguf_file  # noqa: F401 - a fixture


def logits_of(model) -> torch.Tensor:
    ids = torch.arange(1, 200, 7).reshape(1, -1)
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def opened(folder, **where):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True, **where)


def rounded(model):
    """Its matrices in float16's precision: what a file of that type can hold."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.copy_(weight.half().float())
    return model


def fields(path) -> dict:
    from gguf import GGUFReader

    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


def merge(file) -> None:
    """Three merges more in a tokenizer without any; one number of the model stays without a token."""
    content = json.loads(file.read_text())
    merges = [["r", "e"], ["Ġ", "l"], ["re", "d"]]
    content["model"]["merges"] = merges
    content["model"]["vocab"] |= {token["content"]: token["id"] for token in content["added_tokens"]}
    content["model"]["vocab"] |= {"".join(pair): 259 + n for n, pair in enumerate(merges)}
    file.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def moved(gguf_file, tmp_path_factory):  # noqa: F811
    """The folder of a GGUF file whose weights have moved, as a predicted checkpoint's have."""
    folder = tmp_path_factory.mktemp("moved")
    convert_gguf(gguf_file, folder / "base")
    model = opened(folder / "base")
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.01 * torch.randn_like(weight))
    shutil.copytree(folder / "base", folder / "checkpoint")
    model.save_pretrained(folder / "checkpoint")
    return folder / "checkpoint"


@pytest.mark.parametrize(("kind", "most"), [("f32", 1e-6), ("f16", 1e-3)])
def test_a_model_that_came_from_a_gguf_file_goes_back_into_one(gguf_file, moved, tmp_path, kind, most):  # noqa: F811
    target = tmp_path / "out.gguf"
    size = write_gguf(target, moved, gguf_file, kind, {"foretune.run": "r"})
    assert size == target.stat().st_size and list(tmp_path.iterdir()) == [target]
    again, folder = opened(tmp_path, gguf_file="out.gguf"), opened(moved)
    torch.testing.assert_close(
        logits_of(again), logits_of(rounded(folder) if kind == "f16" else folder), atol=most, rtol=0
    )
    before, after = fields(gguf_file), fields(target)
    assert after["foretune.run"] == "r" and after["general.file_type"] == {"f32": 0, "f16": 1}[kind]
    told = {name for name in before if not name.startswith("GGUF.")}  # its name too
    assert {name: after[name] for name in told} == {name: before[name] for name in told}


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": False, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
        ("llama", {"head_dim": 16}),
        ("qwen2", {}),
    ],
)
def test_a_folder_of_another_origin_is_written_with_its_tokenizer(tmp_path, family, changes):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(tiny_config(family, vocab_size=263, **changes))
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) / 5)  # biases and norms too
    model.save_pretrained(tmp_path / "model")
    write_tokenizer(tmp_path / "model")
    merge(tmp_path / "model" / "tokenizer.json")
    write_gguf(tmp_path / "out.gguf", tmp_path / "model", None, "f32")
    again = opened(tmp_path, gguf_file="out.gguf")
    torch.testing.assert_close(logits_of(again), logits_of(opened(tmp_path / "model")), atol=1e-6, rtol=0)
    read = AutoTokenizer.from_pretrained(tmp_path, gguf_file="out.gguf")
    own = AutoTokenizer.from_pretrained(tmp_path / "model")
    text = "Where's the 12 red lamps?\n<|im_start|>ä 日本"
    assert read.encode(text, add_special_tokens=False) == own.encode(text, add_special_tokens=False)
    assert (read.eos_token, read.chat_template) == (own.eos_token, own.chat_template)
    told = fields(tmp_path / "out.gguf")
    assert told["tokenizer.ggml.pre"] == "gpt-2" and told["general.architecture"] == family


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("gpt_neox", {}, "no GGUF file is made of a gpt_neox model here"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "has scaled RoPE"),
        ("llama", {"attention_bias": True}, "has biases"),
        ("llama", {"tokenizer": "WordPiece"}, "no byte-level BPE that is known here"),
    ],
)
def test_what_cannot_be_written_is_refused_with_the_remedy(tmp_path, family, changes, said):
    from transformers import AutoModelForCausalLM

    model_of = {name: value for name, value in changes.items() if name != "tokenizer"}
    AutoModelForCausalLM.from_config(tiny_config(family, **model_of)).save_pretrained(tmp_path / "model")
    write_tokenizer(tmp_path / "model")
    file = tmp_path / "model" / "tokenizer.json"
    if "tokenizer" in changes:
        content = json.loads(file.read_text())
        content["pre_tokenizer"] = {"type": "Whitespace"}
        file.write_text(json.dumps(content))
    with pytest.raises(BadInput, match=rf"^--gguf: .*{said}.*convert_hf_to_gguf\.py$"):
        write_gguf(tmp_path / "out.gguf", tmp_path / "model", None)
    assert not list(tmp_path.glob("*.gguf")) and not list(tmp_path.glob(".*"))
