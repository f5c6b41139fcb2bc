"""Fixtures that every room's tests share: a tiny Llama with a byte-level tokenizer, a few rows, and runs of both."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from tests.roots import disk_root, own_cache, s3_client, s3_environment, s3_root, s3_server  # noqa: F401

if TYPE_CHECKING:
    from tests.dag import Simulated

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

_cache = tempfile.TemporaryDirectory(prefix="foretune-cache-")
os.environ["FORETUNE_CACHE"] = _cache.name  # what tests download and measure is no business of the user's

# An example of 200 ms says more of what else the machine does than of the code.
hypothesis.settings.register_profile("by no clock", deadline=None)
hypothesis.settings.load_profile("by no clock")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that wait for servers and processes come first: another worker computes meanwhile, and none is last."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: 2 * slow[item.path] <= tests[item.path])


CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer of 256 + 3 symbols with a ChatML template, in Hugging Face's file format."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 512,
        "chat_template": CHATML,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


SHAPE = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": 257,
    "eos_token_id": 258,
    "initializer_range": 0.2,
}


def tiny_config(family: str, **changes: Any) -> Any:
    """transformers' configuration of a two-layer model of a family: llama, gpt2, qwen2, gemma2 or gpt_neox."""
    import transformers as t

    grouped = SHAPE | {"num_key_value_heads": 2}
    gpt2 = {
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 256,
        **{name: SHAPE[name] for name in ("vocab_size", "bos_token_id", "eos_token_id", "initializer_range")},
    }
    llama = {"max_position_embeddings": 512, "tie_word_embeddings": True, "pad_token_id": 256}
    config, own = {
        "llama": (t.LlamaConfig, grouped | llama),
        "gpt2": (t.GPT2Config, gpt2),
        "qwen2": (t.Qwen2Config, grouped | {"tie_word_embeddings": False}),
        "gemma2": (t.Gemma2Config, grouped | {"head_dim": 8, "sliding_window": 16}),
        "gpt_neox": (t.GPTNeoXConfig, SHAPE),
    }[family]
    return config(**own | changes)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a two-layer Llama (vocab 259, d_model 32, tied embeddings, fp32), the same in every run."""
    import torch
    from transformers import LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny_llama")
    torch.manual_seed(0)
    LlamaForCausalLM(tiny_config("llama")).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Callable[[str], Path]:
    """Folder of a tiny model of a family, with the tiny Llama's tokenizer, made on first use."""
    made: dict[str, Path] = {"llama": tiny_llama}

    def folder(family: str) -> Path:
        import torch
        from transformers import AutoModelForCausalLM

        if family not in made:
            torch.manual_seed(1)
            made[family] = tmp_path_factory.mktemp(family)
            AutoModelForCausalLM.from_config(tiny_config(family)).save_pretrained(made[family])
            write_tokenizer(made[family])
        return made[family]

    return folder


SUBJECTS = ["red lamp", "blue lamp", "north gate", "south gate", "old pump", "new pump", "left valve", "right valve"]
QUESTIONS = ["What is the {}?", "Where is the {}?", "Who checks the {}?"]
ANSWERS = ["The {} is a part of the plant.", "The {} stands by the river.", "The night shift checks the {}."]


@pytest.fixture(scope="session")
def tiny_rows() -> list[dict[str, str]]:
    """24 instruction rows of one small domain."""
    return [
        {"instruction": question.format(subject), "output": answer.format(subject)}
        for question, answer in zip(QUESTIONS, ANSWERS, strict=True)
        for subject in SUBJECTS
    ]


@pytest.fixture(scope="session")
def prefect_server():
    """One ephemeral Prefect server on a database of its own for all tests that run flows."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture
def shared_server(prefect_server: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands that a test starts use the tests' server: one of their own costs ten seconds of a processor."""
    from prefect.settings import get_current_settings

    monkeypatch.setenv("PREFECT_API_URL", str(get_current_settings().api.url))


def write_sae(folder: Path, seed: int) -> Path:
    """A TopK SAE (d_in 32, d_sae 64, k 8) in sae-lens's format, read before the tiny Llama's layer 1."""
    import torch
    from sae_lens import TopKSAE, TopKSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    torch.manual_seed(seed)
    metadata = SAEMetadata(hook_name="blocks.1.hook_resid_pre", model_name="tiny")
    sae = TopKSAE(TopKSAEConfig(d_in=32, d_sae=64, k=8, metadata=metadata))
    with torch.no_grad():
        directions = torch.nn.functional.normalize(torch.randn(64, 32), dim=1)
        sae.W_dec.copy_(directions)
        sae.W_enc.copy_(directions.T)
    sae.save_model(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_sae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the SAE of `write_sae`, the same in every run."""
    return write_sae(tmp_path_factory.mktemp("tiny_sae"), seed=1)


@pytest.fixture(scope="session")
def write_tiny_request(tiny_llama: Path, tiny_sae: Path, tiny_rows: list[dict[str, str]]) -> Callable[[Path], Path]:
    """Writes a request.yaml over the tiny model, with every optional input, into a folder."""
    import yaml

    def write(folder: Path, name: str, rows: list[dict]) -> str:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(folder / name)

    def request_in(folder: Path) -> Path:
        pairs = [{"prompt": row["instruction"], "chosen": row["output"], "rejected": "No idea."} for row in tiny_rows]
        request = {
            "name": "tiny",
            "dataset": {
                "path": write(folder, "train.jsonl", tiny_rows[:18]),
                "heldout": {"path": write(folder, "heldout.jsonl", tiny_rows[18:])},
                "preferences": write(folder, "preferences.jsonl", pairs[:6]),
                "probes": write(
                    folder, "probes.jsonl", [{"text": "The river is old."}, {"text": "def f(x): return x"}]
                ),
                "max_length": 128,
            },
            "model": {"name_or_path": str(tiny_llama)},
            "sae": {"path": str(tiny_sae)},
            "adapter": {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]},
            "training": {"learning_rate": 1e-3, "epochs": 2, "batch_size": 4},
            "influence": {"solver": {"when": "always"}},  # nothing ranks by it
            "shards": {"max_rows": 6},
            "behaviour": {
                "suites": ["refusal", "arithmetic", "instruction_format"],
                "items": 4,
                "answer_tokens": 4,
                "path": {"points": 1, "orders": 1, "nulls": 1},
            },
            "residual_change": {"when": "always", "directions": 2, "draws": 4},
            "circuits": {"prompts": 2, "points": 2, "largest": 3, "draws": 2},
            "runtime": {"root": str(folder / "root")},
        }
        (folder / "request.yaml").write_text(yaml.safe_dump(request))
        return folder / "request.yaml"

    return request_in


@pytest.fixture
def tiny_request(tmp_path: Path, write_tiny_request: Callable[[Path], Path]) -> Path:
    """A request.yaml over the tiny model in a folder of the test's own."""
    return write_tiny_request(tmp_path)


@pytest.fixture(scope="session")
def first(tmp_path_factory: pytest.TempPathFactory, write_tiny_request: Callable[[Path], Path]) -> Simulated:
    """The tiny request simulated once, as it is; only to be read."""
    from tests.dag import run_dag

    return run_dag(write_tiny_request(tmp_path_factory.mktemp("first")))


@pytest.fixture(scope="session")
def first_run(first: Simulated) -> Path:
    """The request.yaml of `first`, whose artefacts are all stored; only to be read."""
    return Path(first.step.run.root).parent / "request.yaml"


@pytest.fixture
def simulated(tiny_request: Path, first: Simulated) -> Callable[..., Simulated]:
    """`simulated("a.b=c", ...)` runs the whole DAG of the tiny request with these settings changed.

    What `first` has stored is stored for it too: it computes what the settings change.
    """
    from tests.dag import run_dag

    linked(Path(first.step.run.root) / "artifacts", tiny_request.parent / "root" / "artifacts")
    return lambda *overrides: run_dag(tiny_request, *overrides)


def linked(source: Path, folder: Path) -> None:
    """A copy of a folder of artefacts, which nobody changes in place."""
    shutil.copytree(source, folder, dirs_exist_ok=True, copy_function=os.link)


def request_beside(source: Path, folder: Path) -> Path:
    """A copy of a request.yaml with its rows and its root, in a folder of the test's own."""
    shutil.copytree(source.parent, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("artifacts"))
    linked(source.parent / "root" / "artifacts", folder / "root" / "artifacts")
    for file in (folder / "request.yaml", *(folder / "root" / "runs").glob("*/result.json")):
        file.write_text(file.read_text().replace(str(source.parent), str(folder)))
    return folder / "request.yaml"


@pytest.fixture
def warm_request(tmp_path: Path, first_run: Path) -> Path:
    """The request of `first` in a folder of the test's own, with a copy of the root that has every artefact."""
    return request_beside(first_run, tmp_path)


@pytest.fixture
def reference(tiny_llama: Path) -> Any:
    """The tiny model, opened by transformers alone."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_llama, attn_implementation="eager").requires_grad_(False)
