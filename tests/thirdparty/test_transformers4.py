"""A folder that foretune makes is the same model under transformers 4, which many tools still pin.

The environment is made by `make thirdparty`; without it these tests are left out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from foretune.tasks.loading.older_readers import name_for_older_readers
from tests.conftest import SHAPE, write_tokenizer

PROJECT = Path(__file__).parents[2]
OLDER = PROJECT / ".bench" / "transformers4" / "bin" / "python"
SCRIPT = Path(__file__).with_name("read_folders.py")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.optional,
    pytest.mark.skipif(not OLDER.exists(), reason="no environment with transformers 4; `make thirdparty` makes it"),
]

GROUPED = SHAPE | {"num_key_value_heads": 2, "max_position_embeddings": 256}
TWO_KINDS = ["sliding_attention", "full_attention"]
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}


def rope(rope_type: str = "default", theta: float = 5e4, **more: Any) -> dict[str, Any]:
    return {"rope_type": rope_type, "rope_theta": theta, **more}


def with_rope(*args: Any, **more: Any) -> dict[str, Any]:
    return GROUPED | {"rope_parameters": rope(*args, **more)}


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
YARN = {"factor": 4.0, "original_max_position_embeddings": 64}
LONG = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 2.5, 3.0, 4.0]}
GEMMA3 = {"full_attention": rope("linear", 1e6, factor=4.0), "sliding_attention": rope(theta=2e4)}

# Every architecture that transformers reads from a GGUF file and that is a language model without an encoder.
MODELS = {
    "llama": ("Llama", with_rope()),
    "llama, RoPE of Llama 3": ("Llama", with_rope("llama3", 5e5, **LLAMA3)),
    "llama, linear RoPE": ("Llama", with_rope("linear", factor=2.0)),
    "llama, YaRN": ("Llama", with_rope("yarn", **YARN)),
    "mistral": ("Mistral", with_rope()),
    "qwen2": ("Qwen2", with_rope()),
    "qwen2_moe": ("Qwen2Moe", with_rope() | EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 32}),
    "qwen3": ("Qwen3", with_rope() | {"head_dim": 8}),
    "qwen3_moe": ("Qwen3Moe", with_rope() | EXPERTS | {"head_dim": 8, "num_experts": 4}),
    "falcon": ("Falcon", SHAPE | {"ffn_hidden_size": 64, "rope_parameters": rope()}),
    "phi3": ("Phi3", with_rope() | {"pad_token_id": 256}),
    "phi3, long": (
        "Phi3",
        with_rope("longrope", **LONG) | {"pad_token_id": 256, "original_max_position_embeddings": 32},
    ),
    "bloom": ("Bloom", {"vocab_size": 259, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "stablelm": ("StableLm", with_rope(partial_rotary_factor=0.5)),
    "gpt2": ("GPT2", {"vocab_size": 259, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    "starcoder2": ("Starcoder2", with_rope()),
    "mamba": ("Mamba", {"vocab_size": 259, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
    "nemotron": ("Nemotron", with_rope(partial_rotary_factor=0.5) | {"head_dim": 8}),
    "gemma2": ("Gemma2", with_rope() | {"head_dim": 8, "sliding_window": 16}),
    "gemma3": (
        "Gemma3Text",
        GROUPED | {"head_dim": 8, "sliding_window": 16, "layer_types": TWO_KINDS, "rope_parameters": GEMMA3},
    ),
    "lfm2": ("Lfm2", with_rope() | {"block_auto_adjust_ff_dim": False, "layer_types": ["conv", "full_attention"]}),
    "gpt_oss": (
        "GptOss",
        with_rope("yarn", 1.5e5, **YARN)
        | {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": TWO_KINDS},
    ),
}


def write_model(folder: Path, name: str) -> Path:
    """A model of random weights as transformers 5 writes it from a GGUF file, the class of its tokenizer included."""
    import transformers

    family, config = MODELS[name]
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, f"{family}Config")(**config))
    model.save_pretrained(folder)
    write_tokenizer(folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": "TokenizersBackend"}))
    return folder


def read_by(python: Path | str, out: Path, folders: list[Path]) -> dict[str, Any]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    words = [str(python), str(SCRIPT), str(out), *map(str, folders)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What both versions read: `plain` as written by version 5, `five` and `four` with the names for version 4."""
    base = tmp_path_factory.mktemp("models")
    plain = [write_model(base / "plain" / name, name) for name in MODELS]
    named = [write_model(base / "named" / name, name) for name in MODELS]
    for folder in named:
        name_for_older_readers(folder)
    both = read_by(sys.executable, base / "five.json", [*plain, *named])
    four = read_by(OLDER, base / "four.json", named)
    assert both["version"].startswith("5.")
    assert four["version"].startswith("4.")
    return {
        name: {"plain": both[str(a)], "five": both[str(b)], "four": four[str(b)]}
        for name, a, b in zip(MODELS, plain, named, strict=True)
    }


@pytest.mark.parametrize("name", MODELS)
def test_the_names_for_version_4_change_nothing_for_version_5(read, name):
    assert read[name]["five"] == read[name]["plain"]


@pytest.mark.parametrize("name", MODELS)
def test_version_4_reads_the_same_model(read, name):
    four, five = read[name]["four"], read[name]["five"]
    assert (four["tokens"], four["dtype"]) == (five["tokens"], five["dtype"])
    torch.testing.assert_close(torch.tensor(four["logits"]), torch.tensor(five["logits"]), atol=2e-5, rtol=0)


def test_without_the_names_version_4_reads_another_model_or_none(tmp_path):
    """What the tests above would see if nothing were added."""
    folder = write_model(tmp_path / "plain", "llama")
    script = tmp_path / "base.py"
    script.write_text(f"import transformers as t; print(t.AutoConfig.from_pretrained({str(folder)!r}).rope_theta)")
    done = subprocess.run([str(OLDER), str(script)], capture_output=True, text=True, timeout=300)
    assert float(done.stdout) == 10000.0  # written was 50,000
