"""Tiny models of several families, and batches for them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.loading import LoadedModel, ModelSettings, load_model

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


def family_config(family: str):
    import transformers as t

    grouped = SHAPE | {"num_key_value_heads": 2}
    if family == "gpt2":
        return t.GPT2Config(
            vocab_size=259,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=64,
            bos_token_id=257,
            eos_token_id=258,
            initializer_range=0.2,
        )
    return {
        "qwen2": lambda: t.Qwen2Config(**grouped, tie_word_embeddings=False),
        "gemma2": lambda: t.Gemma2Config(**grouped, head_dim=8, sliding_window=16),
        "gpt_neox": lambda: t.GPTNeoXConfig(**SHAPE),
    }[family]()


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Callable[[str], Path]:
    """Folder of a tiny model of a family (llama, gpt2, qwen2, gemma2, gpt_neox), made on first use."""
    made: dict[str, Path] = {"llama": tiny_llama}

    def folder(family: str) -> Path:
        import torch
        from transformers import AutoModelForCausalLM

        if family not in made:
            torch.manual_seed(1)
            made[family] = tmp_path_factory.mktemp(family)
            AutoModelForCausalLM.from_config(family_config(family)).save_pretrained(made[family])
            for name in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copyfile(tiny_llama / name, made[family] / name)
        return made[family]

    return folder


@pytest.fixture(scope="session")
def opened(folder_of: Callable[[str], Path]) -> Callable[[str], LoadedModel]:
    """The loaded model of a family, on the CPU."""

    def open_family(family: str) -> LoadedModel:
        return load_model(folder_of(family), ModelSettings(name_or_path=str(folder_of(family)), device="cpu"))

    return open_family


@pytest.fixture
def llama_copy(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy of the tiny Llama that a test may damage."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


@pytest.fixture(scope="session")
def batch():
    """Three rows of 9, 6 and 4 tokens, padded on the right."""
    from tasks.numerics.batches import collate

    rows = [list(range(start, start + length)) for start, length in ((10, 9), (60, 6), (120, 4))]
    return collate([(row, row) for row in rows])


def settings(folder: Path | str, **changes) -> ModelSettings:
    return ModelSettings(name_or_path=str(folder), device="cpu", **changes)


@pytest.fixture
def resid():
    """Activations [4, 7, 32] away from zero mean."""
    import torch

    return 3 * torch.randn(4, 7, 32, generator=torch.Generator().manual_seed(9)) + 1
