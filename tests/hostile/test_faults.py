"""Faults of what is around a run: a server that dies, a port that is taken, a clock that goes back, rows that say
almost nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from foretune.storage.events import read_events
from foretune.storage.runs import list_runs
from tests.hostile.contract import Outcome, faults
from tests.lean import LEAN, as_words
from tests.orchestration.test_telling import started_server

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-c", "from foretune.flows.command import main; main()"]
SAYS_WHEN = [sys.executable, "-c", "from foretune.flows.command import main; print('handled', flush=True); main()"]
"""The command, which says when a handler of ours is there: before, the interpreter's own ends it as it likes."""
LONG = bool(os.environ.get("HOSTILE_SECONDS"))
"""Whether this is `make hostile`."""
SECONDS_TO_GO_ON = 120.0
"""A server takes 10 s to start on a quiet machine, and Prefect's client asks again after up to 32 s."""
SECONDS_WITHOUT_A_SERVER = 60.0
"""After a named server has died: what is left of the run, and some 30 s in which the server is asked again."""
SETTINGS = as_words(*LEAN)


def started(*words: str | Path, command: list[str] = COMMAND, **environment: str) -> subprocess.Popen[str]:
    around = os.environ | {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180"} | environment
    return subprocess.Popen(
        [*command, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=around,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def ended(process: subprocess.Popen[str], seconds: float = 400) -> Outcome:
    began = time.monotonic()
    out, err = process.communicate(timeout=seconds)
    return Outcome(process.returncode, out, err, time.monotonic() - began, 0)


def servers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "uvicorn" in " ".join(child.cmdline())]


def begun(root: Path, task: str) -> bool:
    return any(event.get("task") == task for run in list_runs(str(root)) for event in read_events(run))


@pytest.mark.parametrize("task", ["landscape_shard", "influence", "report"] if LONG else ["landscape_shard"])
def test_a_temporary_prefect_server_that_is_killed_is_started_again_and_the_run_goes_on(tiny_request: Path, task: str):
    root = tiny_request.parent / "root"
    process = started("simulate", tiny_request, "--quiet", *SETTINGS)
    until = time.monotonic() + 300
    while process.poll() is None and not begun(root, task) and time.monotonic() < until:
        time.sleep(0.05)
    (server,) = servers_of(process)
    others, killed = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)), time.monotonic()
    server.kill()
    outcome = ended(process)
    assert (outcome.status, faults(outcome, 400)) == (0, []), outcome.err
    assert time.monotonic() - killed < SECONDS_TO_GO_ON * others
    (run,) = list_runs(str(root))
    assert run.read_result()["status"] == "completed" and not server.is_running()


ON_RAY = ("simulate", "--set", "runtime.runner=ray")


@pytest.mark.parametrize("words", [("simulate",), ("vet",), ("backtest",), ON_RAY] if LONG else [("simulate",)])
def test_a_named_prefect_server_that_dies_is_said_once_and_costs_seconds(
    tiny_request: Path, tmp_path: Path, words: tuple[str, ...]
):
    root = tiny_request.parent / "root"
    with started_server(tmp_path) as server:
        until = time.monotonic() + 300
        while not server.healthy():
            assert time.monotonic() < until, "the server does not start"
            time.sleep(0.5)
        named = f"http://127.0.0.1:{server.port}/api"
        command, *more = words
        process = started(command, tiny_request, "--quiet", *more, *SETTINGS, PREFECT_API_URL=named)
        until = time.monotonic() + 300
        while process.poll() is None and not begun(root, "landscape_shard") and time.monotonic() < until:
            time.sleep(0.05)
        others, killed = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)), time.monotonic()
        server.kill()
        outcome = ended(process)
    line, *more = outcome.err.splitlines()
    assert f"Prefect server {named} cannot be reached" in line and "the run goes on" in line
    if words == ON_RAY:  # whose workers take their tasks from the server
        assert outcome.status == 1 and len(more) == 1 and "went away" in more[0] and "unset PREFECT_API_URL" in more[0]
        return
    assert (outcome.status, more) in ([(0, []), (3, [])] if words == ("vet",) else [(0, [])]), outcome.err
    assert time.monotonic() - killed < SECONDS_WITHOUT_A_SERVER * others
    (run,) = list_runs(str(root))
    assert run.read_result()["status"] == "completed"


def test_ports_that_are_taken_are_passed_over(tiny_request: Path):
    taken = []
    for port in range(8000, 9000):  # among which the engine draws one for its server
        with_port = socket.socket()
        try:
            with_port.bind(("127.0.0.1", port))
        except OSError:
            with_port.close()
            continue
        taken.append(with_port)
    try:
        outcome = ended(started("simulate", tiny_request, "--quiet", "--set", "dataset.path=none.jsonl"))
        assert (outcome.status, faults(outcome, 400)) == (2, [])
    finally:
        for each in taken:
            each.close()


@pytest.mark.parametrize("milliseconds", [60, 120, 200, 300, 450])
def test_a_signal_while_the_command_starts_is_status_130(tmp_path: Path, milliseconds: int):
    process = started("export", "latest", tmp_path / "out", "--root", tmp_path / "none", command=SAYS_WHEN)
    assert process.stdout and process.stdout.readline() == "handled\n"
    time.sleep(milliseconds / 1000)
    process.send_signal(signal.SIGINT)
    outcome = ended(process, 60)
    if outcome.status == -signal.SIGINT:  # in the interpreter's own last moments, when everything was said
        assert "no runs here" in outcome.err
    else:
        assert outcome.status in (130, 2)  # 2: it had ended before
    assert "Traceback" not in outcome.err


def test_a_clock_that_goes_back_loses_no_event_and_no_artefact(tiny_request: Path, monkeypatch: pytest.MonkeyPatch):
    from tests.dag import run_dag

    clock, real = iter(range(10**9)), time.time
    monkeypatch.setattr(time, "time", lambda: real() - 3600 * next(clock))
    first = run_dag(tiny_request, *LEAN)
    monkeypatch.setattr(time, "time", real)
    again = run_dag(tiny_request, *LEAN)
    assert first.computed and not again.computed


@pytest.mark.parametrize("row", [{"text": "a"}, {"prompt": "What is it?", "completion": "x"}])
def test_one_trained_token_in_the_held_out_set_has_a_loss(tiny_request: Path, row: dict):
    from tests.dag import run_dag

    (tiny_request.parent / "heldout.jsonl").write_text(json.dumps(row) + "\n")
    done = run_dag(tiny_request, *LEAN)
    assert done.found.summary["heldout_loss_base"] > 0
    json.dumps(done.found.summary, allow_nan=False)
