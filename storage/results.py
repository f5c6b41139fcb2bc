"""What a finished run's result refers to."""

from __future__ import annotations

from foretune.storage.errors import BadInput
from foretune.storage.events import run_status
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run


def artifact_of(run: Run, name: str) -> ArtifactRef:
    """The reference that a run's result keeps under `name`. BadInput when the run has none."""
    try:
        stored = run.read_result()["artifacts"]
    except FileNotFoundError:
        raise BadInput(f"run {run.run_id} has no result ({run_status(run)}); run it to its end first") from None
    if name not in stored:
        raise BadInput(f"run {run.run_id} has no {name}; it has {', '.join(stored)}")
    task, key = stored[name]["uri"].rstrip("/").split("/")[-2:]
    return ArtifactRef(task=task, key=key, uri=stored[name]["uri"], sha256=stored[name]["sha256"])
