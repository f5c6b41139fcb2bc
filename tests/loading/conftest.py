"""Tiny models of several families, and batches for them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from foretune.tasks.loading import LoadedModel, ModelSettings, load_model


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
    from foretune.tasks.numerics.batches import collate

    rows = [list(range(start, start + length)) for start, length in ((10, 9), (60, 6), (120, 4))]
    return collate([(row, row) for row in rows])


def settings(folder: Path | str, **changes) -> ModelSettings:
    return ModelSettings(name_or_path=str(folder), device="cpu", **changes)
