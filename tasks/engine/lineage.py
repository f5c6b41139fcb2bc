"""Lineage as other programs read it: OpenLineage events of a run and of every pass that it computes.

Sent where OpenLineage's own configuration says (OPENLINEAGE_URL, openlineage.yml, OPENLINEAGE__TRANSPORT__...), and
nowhere without one. What cannot be sent is said once, and fails nothing.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import os
import threading
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from foretune.storage.display import one_line
from foretune.storage.errors import failure_line
from foretune.storage.manifest import Manifest, artefacts_in
from foretune.storage.places import Place
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run

logger = logging.getLogger(__name__)

CONFIGURATION = "openlineage.yml"
NAMESPACE = "OPENLINEAGE_NAMESPACE"
"""Environment variable of OpenLineage's integrations: the namespace of jobs; default: foretune."""

OF_A_PASS = {"pass_started": "START", "pass_finished": "COMPLETE", "pass_failed": "FAIL"}
OF_A_RUN = {"completed": "COMPLETE", "failed": "FAIL", "stopped": "ABORT"}


@dataclass
class _Told:
    """What this process knows of a run that has started."""

    sources: dict[str, tuple[str, str]]  # role -> where it lies, digest
    made: dict[str, ArtifactRef] = field(default_factory=dict)
    rows: int | None = None
    flagged: dict[str, int] = field(default_factory=dict)  # rows by rule of quality


_runs: dict[str, _Told] = {}
_sending = threading.Lock()
_silenced = threading.Event()


def is_on() -> bool:
    """Whether OpenLineage is configured; cheap where it is not."""
    named = any(name.startswith("OPENLINEAGE_") and name != NAMESPACE for name in os.environ)
    return (named or _configured(Path.cwd()) or _configured(Path.home() / ".openlineage")) and not _silenced.is_set()


def run_started(run: Run, sources: Mapping[str, tuple[str, str]]) -> None:
    """A run has begun on these sources: where each lies, and the digest that stands for it."""
    if run.run_id in _runs or not is_on():
        return
    _runs[run.run_id] = _Told(dict(sources))
    _send(run, "START", "", run.run_id)


def run_made(run: Run, made: Mapping[str, ArtifactRef], rows: int, flagged: Mapping[str, int]) -> None:
    """What a run gives, and what quality found in its rows; sent when it ends."""
    told = _runs.get(run.run_id)
    if told is not None:
        told.made, told.rows, told.flagged = dict(made), rows, dict(flagged)


def happened(run: Run, type: str, fields: Mapping[str, Any]) -> None:
    """An event of the run's log, sent where OpenLineage has one of its kind."""
    if type not in {*OF_A_PASS, "run_finished"} or not is_on():
        return
    error = fields.get("error")
    if type == "run_finished":
        if run.run_id in _runs:
            _send(run, OF_A_RUN.get(fields["status"], "OTHER"), "", run.run_id, error=error)
            _runs.pop(run.run_id, None)
    else:
        key = fields.get("key", fields["label"])
        _send(run, OF_A_PASS[type], fields["task"], f"{run.run_id}/{fields['task']}/{key}", error, fields.get("key"))


def _send(run: Run, state: str, task: str, name: str, error: Any = None, key: str | None = None) -> None:
    try:
        manifest = run.store.manifest(task, key) if key and state == "COMPLETE" else None
        with _sending:
            client = _client()
            if client is not None:
                client.emit(_event(run, state, task, name, error, manifest))
    except Exception as fault:  # of the network, or of the configuration
        if not _silenced.is_set():
            _silenced.set()
            line = one_line(failure_line(fault))
            logger.warning("%s: OpenLineage events are sent no more in this process (%s)", run.run_id, line)


@functools.cache
def _client() -> Any:
    """OpenLineage's client; None where its configuration names no transport, where it would print every event."""
    from openlineage.client import OpenLineageClient
    from openlineage.client.event_v2 import set_producer

    set_producer(f"urn:foretune:{importlib.metadata.version('foretune')}")
    client = OpenLineageClient()
    named = client.config.transport or os.environ.get("OPENLINEAGE_URL")
    return client if named else None


def _configured(folder: Path) -> bool:
    try:
        return (folder / CONFIGURATION).is_file()
    except OSError:
        return False


def _event(run: Run, state: str, task: str, name: str, error: Any, manifest: Manifest | None) -> Any:
    """A RunEvent of the run, or with `task` of one of its passes."""
    from openlineage.client.event_v2 import Job, RunEvent, RunState
    from openlineage.client.event_v2 import Run as LineageRun
    from openlineage.client.facet_v2 import error_message_run, job_type_job, parent_run, processing_engine_run

    version = importlib.metadata.version("foretune")
    space, job = one_line(os.environ.get(NAMESPACE) or "foretune"), one_line(run.name)
    facets: dict[str, Any] = {"processing_engine": processing_engine_run.ProcessingEngineRunFacet(version, "foretune")}
    if task:
        facets["parent"] = parent_run.ParentRunFacet(parent_run.Run(_id(run.run_id)), parent_run.Job(space, job))
    if error:
        facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(one_line(error), "Python")
    kind = job_type_job.JobTypeJobFacet("BATCH", "FORETUNE", "TASK" if task else "DAG")
    return RunEvent(
        eventType=RunState[state],
        eventTime=datetime.now(UTC).isoformat(),
        run=LineageRun(_id(name), facets),
        job=Job(space, f"{job}.{task}" if task else job, {"jobType": kind}),
        inputs=_inputs(run, manifest, bool(task)),
        outputs=_outputs(run, manifest, bool(task)),
    )


def _id(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"foretune:{name}"))


def _inputs(run: Run, manifest: Manifest | None, of_pass: bool) -> list[Any]:
    """The files that a run reads, or the artefacts and files that a pass has read."""
    from openlineage.client.event_v2 import InputDataset
    from openlineage.client.facet_v2 import data_quality_assertions_dataset as assertions
    from openlineage.client.facet_v2 import data_quality_metrics_input_dataset as metrics

    told = _runs.get(run.run_id, _Told({}))
    if manifest is not None:
        read, digests = list(artefacts_in(manifest.inputs)), set(_digests(manifest.inputs))
        stored = [(_place(run, task, key), key) for task, key in dict.fromkeys(read)]
        files = [(uri, digest) for uri, digest in dict.fromkeys(told.sources.values()) if digest in digests]
        return [_dataset(InputDataset, uri, version) for uri, version in [*files, *stored]]
    if of_pass:
        return []
    found = []
    for role, (uri, digest) in _named_once(told.sources):
        facets: dict[str, Any] = {}
        if role == "train" and told.rows is not None:
            held = [assertions.Assertion(one_line(rule), success=not rows) for rule, rows in told.flagged.items()]
            facets["dataQualityMetrics"] = metrics.DataQualityMetricsInputDatasetFacet({}, rowCount=told.rows)
            facets["dataQualityAssertions"] = assertions.DataQualityAssertionsDatasetFacet(held)
        found.append(_dataset(InputDataset, uri, digest, inputFacets=facets))
    return found


def _outputs(run: Run, manifest: Manifest | None, of_pass: bool) -> list[Any]:
    """The artefact that a pass has made, or what a run gives."""
    from openlineage.client.event_v2 import OutputDataset
    from openlineage.client.facet_v2 import output_statistics_output_dataset as statistics

    if manifest is not None:
        size = statistics.OutputStatisticsOutputDatasetFacet(size=manifest.bytes, fileCount=len(manifest.files))
        place = _place(run, manifest.task, manifest.key)
        made = _dataset(OutputDataset, place, manifest.sha256, outputFacets={"outputStatistics": size})
        made.facets |= _schema(run, manifest)
        return [made]
    told = _runs.get(run.run_id)
    if of_pass or told is None:
        return []
    return [_dataset(OutputDataset, ref.uri, ref.sha256) for ref in dict.fromkeys(told.made.values())]


def _schema(run: Run, manifest: Manifest) -> dict[str, Any]:
    """The columns of the artefact's table, where it has one alone."""
    tables = [name for name in manifest.files if name.endswith(".parquet")]
    if len(tables) != 1:
        return {}
    from openlineage.client.facet_v2 import schema_dataset
    from pyarrow.parquet import read_schema

    artifact = run.store.open(ArtifactRef(task=manifest.task, key=manifest.key, uri="", sha256=manifest.sha256))
    fields = [
        schema_dataset.SchemaDatasetFacetFields(name=one_line(each.name), type=str(each.type))
        for each in read_schema(artifact.path(tables[0]))
    ]
    return {"schema": schema_dataset.SchemaDatasetFacet(fields)}


def _dataset(kind: Any, uri: str, version: str, **facets: Any) -> Any:
    """A dataset by OpenLineage's names: `file` and a path, `s3://bucket` and a key, else a hub's or another's URI."""
    from openlineage.client.facet_v2 import dataset_version_dataset

    place = one_line(Place(uri).uri)
    scheme, separator, rest = place.partition("://")
    space, name = (f"{scheme}://{rest.partition('/')[0]}", rest.partition("/")[2]) if separator else ("file", place)
    version_facet = dataset_version_dataset.DatasetVersionDatasetFacet(one_line(version))
    return kind(namespace=space, name=name or "/", facets={"version": version_facet}, **facets)


def _place(run: Run, task: str, key: str) -> str:
    return (Place(run.root) / "artifacts" / task / key).uri


def _named_once(sources: Mapping[str, tuple[str, str]]) -> Iterable[tuple[str, tuple[str, str]]]:
    """Every source under its first role: held-out rows may come from the training file."""
    first: dict[tuple[str, str], str] = {}
    for role, source in sources.items():
        first.setdefault(source, role)
    return [(role, source) for source, role in first.items()]


def _digests(inputs: Any) -> Iterable[str]:
    if isinstance(inputs, dict):
        if isinstance(inputs.get("digest"), str):
            yield inputs["digest"]
        inputs = list(inputs.values())
    for each in inputs if isinstance(inputs, list) else ():
        yield from _digests(each)
