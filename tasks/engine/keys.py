"""The cache policy: a task's key from its declared inputs, and the decorator that turns a pass into a task.

A key is made of the task's name, its explicit version, the identities of its inputs and the versions of the
libraries that move its numbers. An artefact stands for itself by its own key, so every key of a run can be
computed before anything ran; a file outside the storage root stands for itself by its digest.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import inspect
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import prefect
from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext
from prefect.results import get_result_store
from pydantic import BaseModel

from foretune.storage.digests import digest_of
from foretune.storage.errors import failure_line
from foretune.storage.rates import remember_rate
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.announcements import announce
from foretune.tasks.engine.invariants import no_optimizer_steps
from foretune.tasks.engine.memory import give_back, within_memory
from foretune.tasks.engine.time_limits import within_time

logger = logging.getLogger("foretune")

NUMERICS = ("torch", "transformers", "safetensors")
"""The libraries whose version is part of every key that involves a model."""

BACK_OFF = (2.0, 8.0, 30.0)
"""Seconds before each further attempt of a pass that the outside world failed; storage has tried for longer by then."""

LASTING = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
"""Faults of the outside world that are there again however long one waits."""


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
        own = getattr(value, "identity", None)
        return own() if own else _settings_identity(value)
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
    sets = [value for value in arguments.values() if hasattr(value, "work")]
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
        (Path(str(folder)).expanduser() / record).unlink(missing_ok=True)


@functools.cache
def library_versions(libraries: tuple[str, ...]) -> dict[str, str]:
    """Installed versions; local build tags (`+cpu`) are dropped, so that a laptop's hit is a cluster's hit."""
    return {name: importlib.metadata.version(name).split("+")[0] for name in libraries}


@functools.cache
def code_commit() -> str | None:
    """The commit this code was checked out at, or None outside a checkout."""
    import subprocess

    asked = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, cwd=Path(__file__).parent, check=False
    )
    return asked.stdout.strip() or None


def content_task(
    *,
    version: int,
    libraries: tuple[str, ...] = NUMERICS,
    retries: int = len(BACK_OFF),
    trains: bool = False,
) -> Callable[[Callable[..., None]], prefect.Task[..., ArtifactRef]]:
    """Turn `compute(draft, run, **inputs)` into a Prefect task `(run, **inputs) -> ArtifactRef`.

    `compute` writes the artefact's files into `draft`; the manifest is written when it returns. `version` is
    raised whenever the numbers that `compute` writes would change for the same inputs. `trains` is for the real
    runs of a backtest alone: in any other pass an optimizer that steps is a broken invariant.
    """

    def decorate(compute: Callable[..., None]) -> prefect.Task[..., ArtifactRef]:
        policy = ContentKey(task=compute.__name__, version=version, libraries=libraries)
        guard = contextlib.nullcontext if trains else functools.partial(_no_training, policy)
        signature = inspect.signature(compute)

        @functools.wraps(compute)
        def body(*args: Any, **kwargs: Any) -> ArtifactRef:
            arguments = body.__signature__.bind(*args, **kwargs).arguments
            return _produce(policy, compute, arguments, guard)

        parameters = [p for name, p in signature.parameters.items() if name != "draft"]
        body.__signature__ = signature.replace(parameters=parameters, return_annotation=ArtifactRef)
        return prefect.task(
            body,
            name=compute.__name__,
            cache_policy=policy,
            persist_result=True,
            result_serializer="json",
            retries=retries,
            retry_delay_seconds=list(BACK_OFF[:retries]),
            retry_jitter_factor=0.5,  # shards that failed together do not come back together
            retry_condition_fn=_is_transient,
            log_prints=False,
        )

    return decorate


def _produce(
    policy: ContentKey,
    compute: Callable[..., None],
    arguments: dict[str, Any],
    guard: Callable[[], contextlib.AbstractContextManager[None]],
) -> ArtifactRef:
    run: Run = arguments["run"]
    inputs = policy.inputs_of(arguments)
    key = policy.key_of_inputs(inputs)
    hit = run.store.find(policy.task, key)
    if hit is not None:
        return hit
    started = time.perf_counter()
    label = _label(policy.task, arguments)
    announce(run, "pass_started", task=policy.task, label=label, key=key)
    try:
        with (
            guard(),  # first, because it imports torch one thread at a time
            _device_slot(arguments),
            run.store.create(
                policy.task,
                key,
                version=policy.version,
                inputs=inputs,
                libraries=library_versions(policy.libraries),
                git_commit=code_commit(),
                work=work_of(arguments),
            ) as draft,
        ):
            within_time(lambda: within_memory(lambda sized: compute(draft, **sized), arguments, label))
    except Exception as error:
        announce(run, "pass_failed", task=policy.task, label=label, error=failure_line(error))
        error.add_note(f"{label} failed")
        raise
    if "torch" in sys.modules:
        give_back()
    remember_rate(draft.manifest)
    announce(
        run,
        "pass_finished",
        task=policy.task,
        label=label,
        key=key,
        cached=False,
        seconds=round(time.perf_counter() - started, 3),
    )
    return draft.ref


def _device_slot(arguments: dict[str, Any]) -> contextlib.AbstractContextManager[None]:
    """A slot of the device that the pass's model computes on; a hit returned before and never waits for one."""
    slot = getattr(arguments.get("model"), "slot", None)
    return slot() if slot else contextlib.nullcontext()


def _no_training(policy: ContentKey) -> contextlib.AbstractContextManager[None]:
    """No optimizer may step while a pass runs; a pass that has no torch at hand is not made to import it."""
    return no_optimizer_steps() if "torch" in {*policy.libraries, *sys.modules} else contextlib.nullcontext()


def _label(task: str, arguments: dict[str, Any]) -> str:
    """What the user reads: the task, and the role and shard it worked on."""
    role, shard = arguments.get("role"), getattr(arguments.get("rows"), "shard", None)
    words = [task, role if isinstance(role, str) else "", f"[{shard.prefix or 'all'}]" if shard is not None else ""]
    return " ".join(word for word in words if word)


def _is_transient(task: prefect.Task[..., Any], task_run: Any, state: Any) -> bool:
    """Retry faults of the outside world only: bad input and a broken invariant stay what they are."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, OSError) and not isinstance(error, LASTING)
