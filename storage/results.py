"""What a finished run's result refers to."""

from __future__ import annotations

from typing import Any

from foretune.storage.errors import BadInput
from foretune.storage.events import run_status
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run


def finished_result(run: Run) -> dict[str, Any]:
    """result.json of a run that has ended. BadInput while it has not."""
    try:
        return run.read_result()
    except FileNotFoundError:
        raise BadInput(f"run {run.run_id} has no result ({run_status(run)}); run it to its end first") from None


def task_and_key(uri: str) -> tuple[str, str]:
    """What the place of an artefact says of it: .../artifacts/<task>/<key>/."""
    task, key = uri.rstrip("/").split("/")[-2:]
    return task, key


def artifact_of(run: Run, name: str) -> ArtifactRef:
    """The reference that a run's result keeps under `name`. BadInput when the run has none."""
    stored = finished_result(run).get("artifacts", {})
    if name not in stored:
        raise BadInput(f"run {run.run_id} has no {name}; it has {', '.join(stored) or 'nothing'}")
    task, key = task_and_key(stored[name]["uri"])
    return ArtifactRef(task=task, key=key, uri=stored[name]["uri"], sha256=stored[name]["sha256"])
