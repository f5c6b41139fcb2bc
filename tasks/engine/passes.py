"""A pass: the decorator that turns `compute(draft, run, **inputs)` into a Prefect task, and how it runs once.

A pass's parameters are its declared inputs, and three of their names are read here: `run` never counts in the key,
`role` and `rows` name the pass for people, and `model` may offer a device slot to wait for (see `pass_inputs`).
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import prefect

from foretune.storage.errors import failure_line, panics_as_errors
from foretune.storage.rates import remember_rate
from foretune.storage.redaction import redact_error
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.announcements import announce
from foretune.tasks.engine.invariants import NO_TRAINING_LOOP, no_optimizer_steps
from foretune.tasks.engine.keys import NUMERICS, ContentKey, library_versions, work_of
from foretune.tasks.engine.memory import give_back, within_memory
from foretune.tasks.engine.pass_inputs import DeviceBound
from foretune.tasks.engine.time_limits import within_time
from foretune.tasks.numerics.work import counted_work

SHORT = 1.0  # seconds; what a shorter pass has freed is not worth the walk over the heap, 30 ms a pass
BACK_OFF = (2.0, 8.0, 30.0)
"""Seconds before each further attempt of a pass that the outside world failed; storage has tried for longer by then."""


LASTING = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
"""Faults of the outside world that are there again however long one waits."""


@functools.cache
def code_commit() -> str | None:
    """The commit this code was checked out at, or None outside a checkout."""
    import subprocess

    git = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, cwd=Path(__file__).parent, check=False
    )
    return git.stdout.strip() or None


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
        parameters = [p for name, p in signature.parameters.items() if name != "draft"]
        taken = signature.replace(parameters=parameters, return_annotation=ArtifactRef)

        @functools.wraps(compute)
        def body(*args: Any, **kwargs: Any) -> ArtifactRef:
            arguments = taken.bind(*args, **kwargs).arguments
            return _produce(policy, compute, arguments, guard)

        setattr(body, "__signature__", taken)  # noqa: B010 - no attribute that a type checker knows
        return prefect.task(  # pyright: ignore[reportCallIssue]
            body,  # pyright: ignore[reportArgumentType]
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
    guard: Callable[[], contextlib.AbstractContextManager[bool | None]],
) -> ArtifactRef:
    run: Run = arguments["run"]
    inputs = policy.inputs_of(arguments)
    key = policy.key_of_inputs(inputs)
    hit = run.store.find(policy.task, key)
    if hit is not None:
        return hit
    started = time.perf_counter()
    label = pass_label(policy.task, arguments)
    announce(run, "pass_started", task=policy.task, label=label, key=key)
    try:
        with (
            panics_as_errors(),
            guard() as watched,  # first, because it imports torch one thread at a time
            _device_slot(arguments),
            run.store.create(
                policy.task,
                key,
                version=policy.version,
                inputs=inputs,
                libraries=library_versions(policy.libraries),
                git_commit=code_commit(),
                work=work_of(arguments),
                run_id=run.run_id,
            ) as draft,
            counted_work() as work,
        ):
            within_time(lambda: within_memory(lambda sized: compute(draft, **sized), arguments, label))
            draft.cost = asdict(work) if work.forward_equivalents else {}
            if watched:
                draft.check(NO_TRAINING_LOOP, "calls of an optimizer's step in this process", optimizer_steps=0)
    except Exception as error:
        redact_error(error)  # Prefect stores and logs what it says
        announce(run, "pass_failed", task=policy.task, label=label, error=failure_line(error))
        error.add_note(f"{label} failed")
        raise
    if "torch" in sys.modules and time.perf_counter() - started > SHORT:
        give_back()
    remember_rate(draft.manifest)  # pyright: ignore[reportArgumentType]
    announce(
        run,
        "pass_finished",
        task=policy.task,
        label=label,
        key=key,
        cached=False,
        seconds=round(time.perf_counter() - started, 3),
        **draft.cost,
    )
    return draft.ref


def _device_slot(arguments: dict[str, Any]) -> contextlib.AbstractContextManager[None]:
    """A slot of the device that the pass's model computes on; a hit returned before and never waits for one."""
    model = arguments.get("model")
    return model.slot() if isinstance(model, DeviceBound) else contextlib.nullcontext()


def _no_training(policy: ContentKey) -> contextlib.AbstractContextManager[bool | None]:
    """No optimizer may step while a pass runs; a pass that has no torch at hand is not made to import it."""
    return no_optimizer_steps() if "torch" in {*policy.libraries, *sys.modules} else contextlib.nullcontext()


def pass_label(task: str, arguments: dict[str, Any]) -> str:
    """What the user reads: the task, and the role, suite and shard it worked on."""
    role, shard = arguments.get("role"), getattr(arguments.get("rows"), "shard", None)
    items = getattr(arguments.get("items"), "label", "")
    words = [
        task,
        role if isinstance(role, str) else "",
        items,
        f"[{shard.prefix or 'all'}]" if shard is not None else "",
    ]
    return " ".join(word for word in words if word)


def _is_transient(task: prefect.Task[..., Any], task_run: Any, state: Any) -> bool:
    """Retry faults of the outside world only: bad input and a broken invariant stay what they are."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, OSError) and not isinstance(error, LASTING)
