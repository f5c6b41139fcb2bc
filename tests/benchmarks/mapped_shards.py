"""Shards that store a few bytes, mapped by the same flow on every runner; Ray's workers import the pass from here."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import prefect

from foretune.flows.engines.threads import steps_on
from foretune.flows.request import RuntimeSettings
from foretune.storage.runs import Run
from foretune.tasks.engine.passes import content_task

WORKERS = 2


@content_task(version=1, libraries=())
def stored_number(draft: Any, run: Run, number: int) -> None:
    """The smallest pass: one file of a few bytes."""
    draft.write_json("number.json", number)


@prefect.flow
def mapped(root: str, runner: str, shards: int) -> float:
    """One task per shard; seconds from the first submission to the last result.

    Timed in here: Prefect looks once a second whether a flow has ended.
    """
    settings = RuntimeSettings(root=root, runner=runner, max_workers=WORKERS)
    with steps_on(Run(root, "run"), settings) as step:
        started = time.perf_counter()
        for number in range(shards):
            step(stored_number, number=number)
        step.finish()
        return time.perf_counter() - started


def unmapped(root: str, shards: int) -> float:
    """Seconds of the same shards one after another, without an engine."""
    started = time.perf_counter()
    for number in range(shards):
        stored_number.fn(run=Run(root, "run"), number=number)
    return time.perf_counter() - started


def runner_row(folder: Path, runner: str, shards: int) -> dict[str, Any]:
    """Seconds of the mapped tasks, cold and with every shard stored, and of the same body without an engine."""
    computed, stored = (mapped(str(folder / f"{runner}-{shards}"), runner, shards) for _ in range(2))
    plain = unmapped(str(folder / f"plain-{runner}-{shards}"), shards)
    return {
        "runner": runner,
        "shards": shards,
        "seconds": round(computed, 3),
        "seconds_per_shard": round(computed / shards, 5),
        "overhead_per_shard": round((computed - plain) / shards, 5),
        "seconds_stored": round(stored, 3),
    }
