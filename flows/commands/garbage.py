"""Garbage collection: artefacts that no kept run refers to, directly or through its artefacts' inputs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from foretune.storage.artifacts import ArtifactStore, Stored
from foretune.storage.cache import sweep_cache
from foretune.storage.errors import BadInput
from foretune.storage.ledger import accepted_runs
from foretune.storage.results import task_and_key
from foretune.storage.runs import Run, list_runs

GRACE_SECONDS = 3600.0
"""An artefact this young may belong to a run that has not written its result yet."""
COPY_DAYS = 30.0
"""A download that nothing has read for this long; it is fetched again when it is needed after all."""


def kept_runs(root: str, last: int | None, days: float | None, now: datetime) -> list[Run]:
    """The runs to keep: the newest `last`, those of the past `days`, and accepted ones; all when neither is given."""
    runs = list_runs(root)
    if last is None and days is None:
        return runs
    newest = {run.run_id for run in runs[-last:]} if last else set()
    newest |= accepted_runs(root)
    oldest = f"{now - timedelta(days=days):%Y%m%d-%H%M%S}" if days is not None else "9"
    return [run for run in runs if run.run_id in newest or run.run_id >= oldest]


def reachable(runs: list[Run], store: ArtifactStore) -> set[tuple[str, str]]:
    """(task, key) of every artefact that the runs' results name, and of all that went into those."""
    waiting: list[tuple[str, str]] = []
    for run in runs:
        try:
            named = run.read_result().get("artifacts", {}).values()
        except (FileNotFoundError, BadInput):
            continue
        waiting += [task_and_key(stored["uri"]) for stored in named]
    seen: set[tuple[str, str]] = set()
    while waiting:
        found = waiting.pop()
        if found in seen:
            continue
        seen.add(found)
        manifest = store.manifest(*found)
        if manifest is not None:
            waiting += list(referenced(manifest.inputs))
    return seen


def referenced(inputs: Any) -> list[tuple[str, str]]:
    """Every {"task": ..., "key": ...} inside a manifest's inputs."""
    if isinstance(inputs, dict):
        if set(inputs) == {"task", "key"}:
            return [(inputs["task"], inputs["key"])]
        return [pair for value in inputs.values() for pair in referenced(value)]
    if isinstance(inputs, list):
        return [pair for value in inputs for pair in referenced(value)]
    return []


def collect_garbage(root: str, last: int | None, days: float | None, delete: bool) -> dict[str, Any]:
    """What would go, or went: runs that are not kept, artefacts that only they needed, and this machine's old
    downloads (`cache_bytes`, counted when they go)."""
    now = datetime.now(UTC)
    store, keep = ArtifactStore(root), kept_runs(root, last, days, now)
    marked, kept_ids = reachable(keep, store), {run.run_id for run in keep}
    doomed = [run for run in list_runs(root) if run.run_id not in kept_ids]
    young = now.timestamp() - GRACE_SECONDS
    loose: list[Stored] = [
        stored for stored in store.iterate() if (stored.task, stored.key) not in marked and stored.modified < young
    ]
    cache_bytes = 0
    if delete:
        for run in doomed:
            run.place.delete()
        for stored in loose:
            store.delete(stored.task, stored.key)
        store.sweep(older_than=GRACE_SECONDS)
        cache_bytes = sweep_cache(older_than=COPY_DAYS * 86400)
    return {
        "root": root,
        "deleted": delete,
        "runs": [run.run_id for run in doomed],
        "artifacts": [{"task": s.task, "key": s.key, "bytes": s.bytes} for s in loose],
        "bytes": sum(stored.bytes for stored in loose),
        "cache_bytes": cache_bytes,
        "kept_runs": len(keep),
    }
