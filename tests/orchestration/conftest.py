"""A finished run of the tiny request, made once; every test works on a copy of its root."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.orchestration.inline import run_inline


@pytest.fixture(scope="session")
def first_run(tmp_path_factory: pytest.TempPathFactory, write_tiny_request: Callable[[Path], Path]) -> Path:
    """The request.yaml of a run whose artefacts are all stored."""
    request = write_tiny_request(tmp_path_factory.mktemp("first_run"))
    run_inline(request)
    return request


@pytest.fixture
def warm_request(tmp_path: Path, first_run: Path) -> Path:
    """The same request in a folder of the test's own, with a copy of the root that has every artefact."""
    shutil.copytree(first_run.parent, tmp_path, dirs_exist_ok=True, copy_function=os.link)
    content = yaml.safe_load(first_run.read_text())
    text = yaml.safe_dump(content).replace(str(first_run.parent), str(tmp_path))
    for file in ("request.yaml", "train.jsonl", "heldout.jsonl", "preferences.jsonl", "probes.jsonl"):
        kept = (tmp_path / file).read_text()
        (tmp_path / file).unlink()  # the link: what a test writes stays its own
        (tmp_path / file).write_text(text if file == "request.yaml" else kept)
    return tmp_path / "request.yaml"
