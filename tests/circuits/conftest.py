"""The tiny run as a finished one, which circuits are traced of."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from foretune.storage.runs import Run
from tests.dag import Simulated


@pytest.fixture(scope="module")
def run(first: Simulated, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The tiny run with what a finished one keeps beside it."""
    found, root = first.step.run, tmp_path_factory.mktemp("traced") / "root"
    shutil.copytree(found.root, root)
    kept = {name: {"uri": ref.uri, "sha256": ref.sha256, "cached": False} for name, ref in first.made.items()}
    traced = Run(str(root), "20260101-000000-tiny-traced")
    traced.write_request((Path(found.root).parent / "request.yaml").read_text())
    traced.write_result({"run_id": traced.run_id, "status": "completed", "artifacts": kept})
    return traced
