"""The path of an earlier run that is reused instead of measuring a run's own."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
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

CANDIDATE_RUNS = 8  # of `along: latest`: the newest of the name


@dataclass(frozen=True)
class Reuse:
    """Which path a run is predicted along: `ref`, or its own where that is None; and the reason, in a line."""

    ref: ArtifactRef | None
    reason: str
    refused: bool = False  # there are earlier paths, and none can replace the run's own


@dataclass(frozen=True)
class OwnPath:
    """What would make a run's own path: its declared inputs, and what of its rows decides how alike two paths are."""

    inputs: dict[str, Any]  # those that are no artefacts, as they enter the key
    rows: list[str]  # sketch of the training rows' ids
    elapsed_lr: float  # cumulative learning rate of the whole run


def reused_path(run: Run, name: str, along: str, inputs: dict[str, Any], ids: list[str], elapsed_lr: float) -> Reuse:
    """The path of the run `along`; with "latest" the most similar one that the newest runs of this name used.

    `inputs` are those of the run's own path that are no artefacts, `ids` its training rows, `elapsed_lr` its
    cumulative learning rate. BadInput when there is no run `along`.
    """
    own = OwnPath({key: identity(value) for key, value in inputs.items()}, sketch(ids), elapsed_lr)
    reuse = _most_similar(_candidates(run.root, name, along), run, own)
    if reuse.refused:
        logger.warning("prediction.along: %s; gradients are measured along its own path", reuse.reason)
    return reuse


def _most_similar(candidates: Iterator[tuple[Run, ArtifactRef]], run: Run, own: OwnPath) -> Reuse:
    version = cast("ContentKey", path.cache_policy).version
    fitting: list[tuple[float, Reuse]] = []
    refusals: list[str] = []
    for earlier, named in candidates:
        ref = run.store.find(named.task, named.key)
        manifest = ref and run.store.manifest(ref.task, ref.key)
        if ref is None or manifest is None or manifest.version != version:
            refusals.append(f"run {earlier.run_id} does not serve this one: its path is gone, or of another version")
            continue
        if is_same_path(manifest.inputs, own.inputs):
            return Reuse(None, f"run {earlier.run_id} has measured this very path, which is found by its key")
        stored = run.store.open(ref).json("path.json")
        reason = mismatch(manifest.inputs, stored, own.inputs, own.rows, own.elapsed_lr)
        if reason:
            refusals.append(f"run {earlier.run_id} does not serve this one: {reason}")
        else:
            distance = path_distance(stored, own.rows, own.elapsed_lr)
            fitting.append((distance, Reuse(ref, f"the path of run {earlier.run_id} is the most similar one")))
    if fitting:
        return min(fitting, key=lambda each: each[0])[1]
    if refusals:
        return Reuse(None, refusals[0], refused=True)
    return Reuse(None, "no earlier run has a path")


def _candidates(root: str, name: str, along: str) -> Iterator[tuple[Run, ArtifactRef]]:
    """Earlier runs with the path that each was predicted along, the newest first; a path that several used once."""
    runs = runs_named(root, name)[:CANDIDATE_RUNS] if along == "latest" else [resolve_run(root, along)]
    seen = set()
    for run in runs:
        try:
            ref = artifact_of(run, "path")
        except BadInput:  # not ended, or predicted by the closed form
            continue
        if ref.key not in seen:
            seen.add(ref.key)
            yield run, ref
