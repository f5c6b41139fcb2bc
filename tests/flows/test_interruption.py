"""Ctrl-C and SIGTERM: status 130 within seconds, the run marked as stopped, no process left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from foretune.storage.events import read_events, run_status
from foretune.storage.runs import Run, list_runs
from tests.lean import as_words, made_lean

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "foretune.flows.cli", "simulate"]
PATIENCE = 300.0
SECONDS = 5.0
STOPPED = "foretune: stopped; run the same command again to go on where it ended\n"


def started(request: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, str(request), "--quiet", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def wait_for(process: subprocess.Popen[str], reached: Callable[[], bool]) -> list[psutil.Process]:
    until = time.monotonic() + PATIENCE
    while process.poll() is None and not reached() and time.monotonic() < until:
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()
    return psutil.Process(process.pid).children(recursive=True)


def begun(root: Path, task: str) -> bool:
    runs: list[Run] = list_runs(str(root))
    return any(event.get("task") == task for run in runs for event in read_events(run))


@pytest.mark.parametrize(
    ("send", "number", "times"),
    [(os.killpg, signal.SIGINT, 1), (os.kill, signal.SIGINT, 2), (os.kill, signal.SIGTERM, 1)],
)
def test_a_signal_while_torch_computes_stops_the_run_at_once(tiny_request: Path, send, number, times):
    root = tiny_request.parent / "root"
    process = started(made_lean(tiny_request))
    children = wait_for(process, lambda: begun(root, "landscape_shard"))
    assert children  # the engine's server
    sent = time.monotonic()
    for _ in range(times):
        send(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - sent < SECONDS
    assert process.returncode == 130
    assert said == STOPPED
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    (run,) = list_runs(str(root))
    assert run_status(run) == "stopped"
    assert [event["type"] for event in read_events(run)].count("run_finished") == 1


PHASES = [("path", signal.SIGTERM), ("influence_replays", signal.SIGINT), ("curvature", signal.SIGTERM),
          ("influence_solve", signal.SIGTERM), ("prediction", signal.SIGINT), ("report", signal.SIGTERM)]  # fmt: skip
QUICK = 1
"""Of them in `make test`; `make hostile` tries all."""


@pytest.mark.parametrize(("task", "number"), PHASES if os.environ.get("HOSTILE_SECONDS") else PHASES[:QUICK])
def test_a_signal_in_a_later_phase_stops_the_run_too(tiny_request: Path, task: str, number: signal.Signals):
    root = tiny_request.parent / "root"
    more = as_words("influence.replays.runs=256", "influence.solver.when=always")
    process = started(made_lean(tiny_request), *more)
    children = wait_for(process, lambda: begun(root, task))
    others, sent = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)), time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - sent < SECONDS * others
    assert (process.returncode, said) == (130, STOPPED)
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    (run,) = list_runs(str(root))
    assert run_status(run) == "stopped"


def test_a_signal_while_libraries_are_imported_leaves_no_traceback(tiny_request: Path):
    process = started(tiny_request)
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said


def test_a_signal_that_an_engine_loses_is_marked_all_the_same_and_ends_the_process(tmp_path: Path):
    """The engine's handler raises in the main thread; in a callback of a library such an exception is lost."""
    script = f"""
import pathlib, signal, time
from foretune.flows import interruption
interruption.ENGINE_SECONDS = 0.5
signal.signal(signal.SIGTERM, lambda *_: pathlib.Path({str(tmp_path / "engine")!r}).touch())
with interruption.when_stopped(lambda: pathlib.Path({str(tmp_path / "marked")!r}).touch()):
    with interruption.heard_beside_the_engine():
        pathlib.Path({str(tmp_path / "begun")!r}).touch()
        time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", script])
    wait_for_path(tmp_path / "begun")
    process.terminate()
    assert process.wait(timeout=30) == 130
    assert (tmp_path / "marked").exists()
    assert (tmp_path / "engine").exists()


def wait_for_path(path: Path) -> None:
    until = time.monotonic() + PATIENCE
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert path.exists()
