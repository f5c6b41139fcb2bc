"""Which earlier run's measured path a run is predicted along."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from foretune.storage.errors import BadInput
from foretune.storage.refs import ArtifactRef
from foretune.storage.results import artifact_of
from foretune.storage.runs import Run, resolve_run, runs_named
from foretune.tasks.engine.keys import identity
from foretune.tasks.prediction.earlier_path import is_same_path, mismatch, path_distance, sketch
from foretune.tasks.prediction.path import path

if TYPE_CHECKING:
    from foretune.tasks.engine.keys import ContentKey

logger = logging.getLogger(__name__)

LOOKED_AT = 8  # runs of a name, the newest


def earlier_path(
    run: Run, name: str, along: str, wanted: dict[str, Any], sample_ids: list[str], travel: float
) -> ArtifactRef | None:
    """The path of the run `along`; for "latest" the nearest that serves of those that the newest runs of this name
    went along. None without.

    `wanted` are the inputs of the run's own path, of its training rows `sample_ids` and its summed learning rates
    `travel`. None also where one of these runs has measured that very path: it is found by its key then.
    BadInput when there is no run `along`.
    """
    declared = {each: identity(value) for each, value in wanted.items()}
    rows, said = sketch(sample_ids), ""
    fitting: list[tuple[float, ArtifactRef]] = []
    for earlier, named in _paths(run.root, name, along):
        ref = run.store.find(named.task, named.key)
        manifest = ref and run.store.manifest(ref.task, ref.key)
        if ref is None or manifest is None or manifest.version != cast("ContentKey", path.cache_policy).version:
            why = "its path is gone, or of another version"
        elif is_same_path(manifest.inputs, declared):
            return None
        else:
            stored = run.store.open(ref).json("path.json")
            why = mismatch(manifest.inputs, stored, declared, rows, travel)
            if not why:
                fitting.append((path_distance(stored, rows, travel), ref))
        said = said or (why and f"prediction.along: run {earlier.run_id} does not serve this one: {why}")
    if said and not fitting:
        logger.warning("%s; gradients are measured along its own path", said)
    return min(fitting, key=lambda each: each[0])[1] if fitting else None


def _paths(root: str, name: str, along: str) -> Iterator[tuple[Run, ArtifactRef]]:
    """Runs with the paths that they were predicted along, each path once; the newest first."""
    runs = runs_named(root, name)[:LOOKED_AT] if along == "latest" else [resolve_run(root, along)]
    seen = set()
    for each in runs:
        try:
            ref = artifact_of(each, "path")
        except BadInput:  # not ended, or predicted by the closed form
            continue
        if ref.key not in seen:
            seen.add(ref.key)
            yield each, ref
