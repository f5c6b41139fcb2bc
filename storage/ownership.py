"""Ownership: what below a root is foretune's. Nothing else is ever deleted, wherever it lies."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any, Literal, TypeGuard

from foretune.storage.artifacts import ArtifactStore
from foretune.storage.cache import DRAFT
from foretune.storage.documents import yaml_mapping
from foretune.storage.errors import BadInput
from foretune.storage.events import EVENTS, PART, PARTS, read_events, run_status
from foretune.storage.places import Place
from foretune.storage.roots import marked_format
from foretune.storage.runs import RUN_FILES, Run, list_runs

GOING_SECONDS = 86400.0
"""A run without an end is taken to be going until it has written nothing for this long."""

State = Literal["foreign", "ended", "unreadable", "going", "given up"]


def is_root(root: str) -> bool:
    """True with a marker, or with an artefact or a run of ours. BadInput for a format that is newer than this code."""
    if marked_format(Place(root)) is not None:
        return True
    store = ArtifactStore(root)
    whole = (stored for stored in store.iterate() if stored.complete)
    artifacts = (stored for stored in whole if store.manifest(stored.task, stored.key, warn=False))  # may be anybody's
    return any(artifacts) or any(_is_ours(run) for run in list_runs(root))


def _is_ours(run: Run) -> bool:
    """Whether a run's folder says that a root is one of ours: a result that nobody can read says nothing of that."""
    state = state_of(run)
    return state != "foreign" and (state != "unreadable" or _has_request(run) or _has_event(run))


def state_of(run: Run) -> State:
    """What a run's folder is, by its content; `foreign` when nothing in it is ours."""
    try:
        result = run.read_result()
    except FileNotFoundError:
        result = None
    except BadInput:
        return "unreadable"  # whoever wrote it: what it refers to is not known
    if result is not None:
        if not _is_result(run, result):
            return "foreign"
        return "ended" if can_be_followed(result.get("artifacts")) else "unreadable"
    if not _has_event(run) and not _has_request(run):
        return "foreign"
    if run_status(run) != "unfinished":
        return "ended"
    return "given up" if time.time() - last_written(run) > GOING_SECONDS else "going"


def last_written(run: Run) -> float:
    """Epoch seconds of the newest file of a run's folder; now, where that lies ahead: a clock was set back."""
    return min(max((entry.modified for entry in run.place.walk()), default=0.0), time.time())


def delete_run(run: Run) -> None:
    """Remove a run's own files, the result last, and its folder where nothing else is in it."""
    names = [name for name in _own_names(run) if name != RUN_FILES[-1]]
    run.place.delete_files(names)
    run.place.delete_files([RUN_FILES[-1]])


def _own_names(run: Run) -> Iterator[str]:
    yield from (*RUN_FILES, EVENTS)
    yield from (f"{PARTS}/{name}" for name in (run.place / PARTS).list() if PART.fullmatch(name))
    drafts = re.compile(rf"\.({'|'.join(map(re.escape, (*RUN_FILES, EVENTS)))})-{DRAFT}")
    yield from (name for name in run.place.hidden_files() if drafts.fullmatch(name))


def _is_result(run: Run, result: dict[str, Any]) -> bool:
    return result.get("run_id") == run.run_id or (run.is_dated and {"status", "request", "artifacts"} <= result.keys())


def can_be_followed(artifacts: Any) -> TypeGuard[dict[str, dict[str, str]]]:
    """True for what `result.json` says of artefacts, if it can be followed."""
    return isinstance(artifacts, dict) and all(
        isinstance(stored, dict) and isinstance(stored.get("uri"), str) for stored in artifacts.values()
    )


def _has_request(run: Run) -> bool:
    try:
        content = yaml_mapping(run.read_request(), f"request of run {run.run_id}", "simulate it again")
    except (FileNotFoundError, BadInput):
        return False
    return {"dataset", "model", "runtime"} <= content.keys()


def _has_event(run: Run) -> bool:
    try:
        return any(event.get("run_id") == run.run_id for event in read_events(run))
    except BadInput:
        return False
