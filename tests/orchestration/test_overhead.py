"""What a task costs that is stored already, beside a cached task of Prefect's own that does nothing."""

from __future__ import annotations

import time
from pathlib import Path

import prefect
from prefect.task_runners import ThreadPoolTaskRunner

from flows.steps import Submitted
from storage.runs import Run
from tasks.keys import content_task

TASKS = 40


@content_task(version=1, libraries=())
def stored(draft, run: Run, number: int) -> None:
    draft.write_json("number.json", number)


@prefect.task(cache_policy=prefect.cache_policies.INPUTS, persist_result=True, result_serializer="json")
def empty(number: int) -> int:
    return number


@prefect.flow
def ours(root: str) -> list[bool]:
    with ThreadPoolTaskRunner(max_workers=2) as runner:
        step = Submitted(Run(root, "run"), runner)
        for number in range(TASKS):
            step(stored, number=number)
        step.finish()
    return [future.result().cached for future in step.asked]


@prefect.flow
def theirs() -> list[int]:
    with ThreadPoolTaskRunner(max_workers=2) as runner:
        futures = [runner.submit(empty, parameters={"number": number}) for number in range(TASKS)]
        return [future.result() for future in futures]


def seconds(flow, *arguments) -> float:
    started = time.perf_counter()
    flow(*arguments)
    return time.perf_counter() - started


def test_stored_tasks_take_at_most_twice_as_long_as_empty_cached_ones(prefect_server, tmp_path: Path):
    root = str(tmp_path / "root")
    assert not any(ours(root))
    theirs()
    assert all(ours(root))
    # On a busy machine one of a few comparisons is enough: noise only ever adds time.
    assert any(seconds(ours, root) <= 2.0 * seconds(theirs) for _ in range(4))
