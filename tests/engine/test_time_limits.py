"""A pass that computes for too long is ended, in a submitted task too; one that waits for its turn is not."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import prefect
import pytest
import torch

from foretune.flows.engines.threads import steps_on
from foretune.flows.request import RuntimeSettings
from foretune.storage.events import read_events
from foretune.storage.runs import Run
from foretune.tasks.engine.passes import content_task
from foretune.tasks.engine.time_limits import OverTime, pass_minutes, uncounted, within_time
from foretune.tasks.inputs.handles import device_lock

pytestmark = pytest.mark.slow

SHORT = 1.5 / 60
"""Minutes."""


def busy(seconds: float) -> str:
    """Computes in torch as a pass does: many short calls."""
    until, matrix = time.monotonic() + seconds, torch.eye(32)
    while time.monotonic() < until:
        matrix = matrix @ matrix
    return "done"


@content_task(version=1, libraries=("torch",))
def endless(draft, run: Run, number: int) -> None:
    draft.write_json("number.json", number)
    busy(60)


@prefect.flow
def limited(root: str) -> None:
    with steps_on(Run(root, "run"), RuntimeSettings(root=root, pass_minutes=SHORT)) as step:
        step(endless, number=1)
        step.finish()


def test_a_submitted_pass_over_its_limit_fails_in_one_line_and_stores_nothing(prefect_server, tmp_path: Path):
    root = str(tmp_path / "root")
    with pytest.raises(OverTime, match=r"not done after 0.025 minutes; raise runtime.pass_minutes"):
        limited(root)
    events = read_events(Run(root, "run"))
    assert [event["type"] for event in events] == ["pass_started", "pass_failed"]  # and is not tried again
    assert events[-1]["error"].startswith("OverTime: not done after")
    assert not list(Path(root).glob("artifacts/endless/*"))


def test_what_ends_in_time_is_left_alone():
    with pass_minutes(SHORT):
        assert within_time(lambda: busy(0.01)) == "done"
        time.sleep(2)  # the clock was stopped
    assert within_time(lambda: busy(2)) == "done"  # no limit


def test_an_exception_that_swallows_everything_does_not_swallow_the_limit():
    def stubborn() -> None:
        while True:
            with contextlib.suppress(Exception):
                busy(0.05)

    with pass_minutes(SHORT), pytest.raises(OverTime):
        within_time(stubborn)


def test_waiting_for_a_device_does_not_count():
    device, inside = SimpleNamespace(device="pretended"), threading.Event()

    def other() -> None:
        with device_lock(device):
            inside.set()
            time.sleep(3)

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait()

    def waits() -> str:
        with device_lock(device):
            return busy(0.01)

    with pass_minutes(SHORT):
        assert within_time(waits) == "done"
    thread.join()


def test_the_clock_goes_on_after_a_wait():
    def waits_then_works() -> None:
        with uncounted():
            time.sleep(2)
        busy(30)

    with pass_minutes(SHORT), pytest.raises(OverTime):
        within_time(waits_then_works)


def test_a_limit_that_is_reached_while_it_waits_gives_the_device_back():
    device = SimpleNamespace(device="pretended too")

    def works() -> None:
        with device_lock(device):
            busy(30)

    with pass_minutes(SHORT), pytest.raises(OverTime):
        within_time(works)
    taken = threading.Thread(target=lambda: device_lock(device).__enter__())
    taken.start()
    taken.join(5)
    assert not taken.is_alive()


def test_an_import_is_not_torn_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "slowly_imported.py").write_text("import time\nfor _ in range(40): time.sleep(0.1)\nwhole = True\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def imports_then_works() -> None:
        import slowly_imported

        assert slowly_imported.whole
        busy(30)

    with pass_minutes(SHORT), pytest.raises(OverTime):
        within_time(imports_then_works)
    assert "slowly_imported" in sys.modules
