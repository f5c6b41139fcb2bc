"""The predicted checkpoint of a run, copied out of the storage root."""

from __future__ import annotations

import shutil
from pathlib import Path

from storage.artifacts import ArtifactRef
from storage.errors import BadInput
from storage.runs import Run


def export_checkpoint(run: Run, folder: str) -> list[str]:
    """Copy the checkpoint's files into `folder`, which must be new or empty; names of the files."""
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BadInput(f"{folder}: exists and is not an empty folder; give another one")
    artifact = checkpoint_of(run)
    source = run.store.open(artifact).folder()
    names = [name for name in run.store.open(artifact).names() if name != "manifest.json"]
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)
    return names


def checkpoint_of(run: Run) -> ArtifactRef:
    """The reference that result.json keeps. BadInput when the run has not ended."""
    try:
        stored = run.read_result()["artifacts"]["checkpoint"]
    except FileNotFoundError:
        raise BadInput(f"run {run.run_id} has no result ({run.status}); run it to its end first") from None
    task, key = stored["uri"].rstrip("/").split("/")[-2:]
    return ArtifactRef(task=task, key=key, uri=stored["uri"], sha256=stored["sha256"])
