"""The cache policy: a task's key from its declared inputs, and the decorator that turns a pass into a task.

A key is made of the task's name, its explicit version, the identities of its inputs and the versions of the
libraries that move its numbers. An artefact stands for itself by its own key, so every key of a run can be
computed before anything ran; a file outside the storage root stands for itself by its digest.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext
from prefect.results import get_result_store
from pydantic import BaseModel

from foretune.storage.digests import digest_of
from foretune.storage.places import Place
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.pass_inputs import Identified, Sized

logger = logging.getLogger("foretune")

NUMERICS = ("torch", "transformers", "safetensors")
"""The libraries whose version is part of every key that involves a model."""


class Fingerprint(BaseModel, frozen=True):
    """An input outside the storage root: where it lies, and the digest that stands for it in keys."""

    uri: str
    digest: str


def without_result(**field: Any) -> dict[str, Any]:
    """`json_schema_extra` of a setting that changes how a result is computed but not what it is."""
    return {"affects_result": False, **field}


def identity(value: Any) -> Any:
    """What stands for `value` in a key, as plain JSON. Raises TypeError for values without a stable identity."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, ArtifactRef):
        return {"task": value.task, "key": value.key}
    if isinstance(value, Fingerprint):
        return {"digest": value.digest}
    if isinstance(value, BaseModel):
        return value.identity() if isinstance(value, Identified) else _settings_identity(value)
    if isinstance(value, list | tuple):
        return [identity(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no identity for a cache key: pass a reference or a setting")


def _settings_identity(settings: BaseModel) -> dict[str, Any]:
    fields = type(settings).model_fields
    kept = {
        name: identity(getattr(settings, name))
        for name, field in fields.items()
        if not isinstance(field.json_schema_extra, dict) or field.json_schema_extra.get("affects_result", True)
    }
    return kept


def work_of(arguments: dict[str, Any]) -> dict[str, int]:
    """How much a task works on, for estimates: rows and tokens of its row sets, parts that it reduces."""
    sets = [value for value in arguments.values() if isinstance(value, Sized)]
    work = {"rows": sum(each.work[0] for each in sets), "tokens": sum(each.work[1] for each in sets)}
    work["parts"] = sum(len(value) for value in arguments.values() if isinstance(value, list))
    return {unit: amount for unit, amount in work.items() if amount}


@dataclass
class ContentKey(CachePolicy):
    """Key = sha256 of (task, version, libraries, identities of the inputs); the parameter `run` never counts.

    Prefect's own result record only mirrors the manifest in the storage root: `compute_key` writes the record
    where the manifest is found and removes it where it is missing or torn, so that a hit always means
    "the artefact is there" and a deleted artefact heals by recomputation.
    """

    task: str = ""
    version: int = 1
    libraries: tuple[str, ...] = ()

    def inputs_of(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The declared inputs as they enter the key and the manifest."""
        return {name: identity(value) for name, value in sorted(arguments.items()) if name != "run"}

    def key_of(self, arguments: dict[str, Any]) -> str:
        """The 40-digit hexadecimal key of these arguments."""
        return self.key_of_inputs(self.inputs_of(arguments))

    def key_of_inputs(self, inputs: dict[str, Any]) -> str:
        return digest_of(
            {
                "task": self.task,
                "version": self.version,
                "libraries": library_versions(self.libraries),
                "inputs": inputs,
            }
        )[:40]

    def compute_key(
        self,
        task_ctx: TaskRunContext,
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],
        **kwargs: Any,
    ) -> str | None:
        run: Run = inputs["run"]
        key = self.key_of(inputs)
        record = f"foretune/{digest_of(run.root)[:12]}/{self.task}/{key}"
        results = get_result_store()
        hit = run.store.find(self.task, key)
        if hit is not None:
            results.persist_result_record(results.create_result_record(hit, key=record))
        else:
            _forget(results, record)
        return record


def _forget(results: Any, record: str) -> None:
    folder = getattr(results.result_storage, "basepath", None)
    if folder is not None:
        (Place(Path(str(folder)).expanduser()) / record).delete()
    elif results.exists(record):  # S3 and other places, which no block of Prefect's deletes from
        past = datetime.now(UTC) - timedelta(days=1)
        results.persist_result_record(results.create_result_record(None, key=record, expiration=past))


@functools.cache
def library_versions(libraries: tuple[str, ...]) -> dict[str, str]:
    """Installed versions; local build tags (`+cpu`) are dropped, so that a laptop's hit is a cluster's hit."""
    return {name: importlib.metadata.version(name).split("+")[0] for name in libraries}
