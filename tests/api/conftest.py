"""One run of the tiny request, published, on a root that has every artefact; made once, only read by the tests."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import foretune
from foretune.runs import StoredRun


@pytest.fixture(scope="session")
def request_folder(tmp_path_factory: pytest.TempPathFactory, first_run: Path) -> Path:
    """A folder with a request.yaml whose root, beside it, has every artefact."""
    folder = tmp_path_factory.mktemp("api")
    shutil.copytree(first_run.parent, folder, dirs_exist_ok=True, copy_function=os.link)
    shutil.rmtree(folder / "root" / "runs")  # those of the fixture had no engine
    text = first_run.read_text().replace(str(first_run.parent), str(folder))
    (folder / "request.yaml").unlink()  # the link
    (folder / "request.yaml").write_text(text)
    return folder


@pytest.fixture(scope="session")
def stored(request_folder: Path, prefect_server: None) -> StoredRun:
    """The run that `foretune.simulate` returned."""
    return foretune.simulate(request_folder / "request.yaml")
