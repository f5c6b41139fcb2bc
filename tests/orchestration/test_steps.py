"""Tasks on threads: how many compute at once, and that one whose inputs are not made keeps none from computing."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import prefect
import pytest

from foretune.flows.engines.threads import steps_on
from foretune.flows.request import RuntimeSettings
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.passes import content_task

pytestmark = pytest.mark.slow

lock, computing, most = threading.Lock(), 0, 0
started: dict[int, float] = {}


@content_task(version=1, libraries=(), retries=0)
def timed(draft, run: Run, number: int, after: list[ArtifactRef], fails: bool) -> None:
    global computing, most
    with lock:
        computing, started[number] = computing + 1, time.monotonic()
        most = max(most, computing)
    time.sleep(0.3)
    with lock:
        computing -= 1
    if fails:
        raise ValueError(f"pass {number} fails")
    draft.write_json("number.json", number)


@prefect.flow
def wired(root: str, workers: int, after: list[list[int]], failing: int | None = None) -> list[bool]:
    """One pass per list of the numbers of earlier ones that it needs; whether each was stored before."""
    with steps_on(Run(root, "run"), RuntimeSettings(root=root, max_workers=workers)) as step:
        made: list = []
        for number, needs in enumerate(after):
            needed = [made[need] for need in needs]
            made.append(step(timed, number=number, after=needed, fails=number == failing))
        step.finish()
        return [step.ready(artifact).cached for artifact in made]


@pytest.fixture(autouse=True)
def nothing_counted():
    global most
    most = 0
    started.clear()


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_no_more_passes_compute_at_once_than_workers(prefect_server, tmp_path: Path, workers: int):
    wired(str(tmp_path / "root"), workers, [[], *[[0]] * 4, *[[]] * 4])
    assert len(started) == 9 and most == workers


def test_passes_whose_inputs_are_not_made_keep_none_from_computing(prefect_server, tmp_path: Path):
    wired(str(tmp_path / "root"), 2, [[], [0], [0], [1, 2], [0, 3], []])
    assert started[5] < min(started[number] for number in (1, 2, 3, 4))
    assert started[4] > started[3] > max(started[1], started[2]) > started[0]


def test_what_needs_a_failed_pass_is_not_computed_and_the_rest_is(prefect_server, tmp_path: Path):
    with pytest.raises(ValueError, match="pass 1 fails"):
        wired(str(tmp_path / "root"), 2, [[], [0], [1], [2], [0], []], failing=1)
    assert sorted(started) == [0, 1, 4, 5]
    started.clear()
    stored = wired(str(tmp_path / "root"), 2, [[], [0], [1], [2], [0], []])
    assert stored == [True, False, False, False, True, True]
    assert sorted(started) == [1, 2, 3]
