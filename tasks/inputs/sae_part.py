"""What is of one SAE in an artefact of several, as an artefact of its own: the names that its readers know."""

from __future__ import annotations

from typing import Any

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.passes import content_task


@content_task(version=1, libraries=())
def sae_part(draft: Any, run: Run, read: ArtifactRef, place: int) -> None:
    """The files of the SAE in this place, counted from 1, named as a pass that reads it alone names them, and those
    that are of all; second names for the same bytes where the disk allows it."""
    stored, folder = run.store.open(read), f"{place}/"
    for name in stored.names():
        own = name.removeprefix(folder)
        if "/" not in own:
            draft.link(own, stored.path(name))
