"""How far a command is, on stderr: counts and an estimate; where it is no terminal, a line now and then."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from foretune.flows.commands import counted as module
from foretune.flows.commands.counted import Counted
from foretune.flows.commands.export import export_checkpoint
from foretune.flows.commands.garbage import collect_garbage
from foretune.flows.commands.terminal import Terminal
from foretune.storage.artifacts import ArtifactStore
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def terminal_on(stream: io.StringIO, quiet: bool = False) -> Terminal:
    terminal = Terminal(quiet, width=120)
    terminal.errors.file = stream
    return terminal


def test_the_rest_is_estimated_from_what_is_done(clock):
    counted = Counted(terminal_on(io.StringIO()))
    counted("copying", 0, 540, "MB")
    assert counted.words == "0 of 540 MB"
    clock.now += 30
    counted("copying", 180, 540, "MB")
    assert counted.words == "180 of 540 MB, about 60 s left"
    counted("evaluating", 1, 4, "settings")  # other work, of another speed
    assert counted.words == "1 of 4 settings"
    clock.now += 600
    counted("evaluating", 2, 4, "settings")
    assert counted.words == "2 of 4 settings, about 10 min left"
    counted("evaluating", 4, 4, "settings")
    assert counted.words == "4 of 4 settings"


def test_where_stderr_is_no_terminal_a_line_is_said_now_and_then(clock):
    said = io.StringIO()
    with Counted(terminal_on(said)) as counted:
        for step in range(31):
            counted("replaying", step, 60, "steps")
            clock.now += 1
    assert [line for line in said.getvalue().splitlines() if line] == [
        "replaying 15 of 60 steps, about 45 s left",
        "replaying 30 of 60 steps, about 30 s left",
    ]


def test_quiet_says_nothing(clock, capsys):
    said = io.StringIO()
    with Counted(terminal_on(said, quiet=True)) as counted:
        counted("replaying", 0, 60, "steps")
        clock.now += 100
        counted("replaying", 30, 60, "steps")
    assert said.getvalue() == "" and capsys.readouterr() == ("", "")


@pytest.fixture
def stored(tmp_path: Path) -> Run:
    """A finished run with a checkpoint of two files."""
    run = Run(str(tmp_path / "root"), "20261101-101010-old-aaaa")
    run.write_request("dataset: {}\nmodel: {}\nruntime: {}\n")
    with run.store.create("checkpoint", "0" * 40, {}, run_id=run.run_id) as draft:
        draft.write_text("a.bin", "a" * 3_000_000)
        draft.write_text("b.bin", "b" * 1_000_000)
    ref: ArtifactRef = draft.ref
    run.write_result({"run_id": run.run_id, "artifacts": {"checkpoint": {"uri": ref.uri, "sha256": ref.sha256}}})
    return run


def test_an_export_counts_what_it_compares_and_what_it_copies(stored, tmp_path):
    told: list[Any] = []

    class Remembered(Counted):
        def __call__(self, *counts: Any) -> None:
            told.append(counts)

    export_checkpoint(stored, str(tmp_path / "out"), Remembered(terminal_on(io.StringIO())))
    assert told == [(what, done, 4.0, "MB") for what in ("checking", "copying") for done in (3.0, 4.0)]


def test_a_collection_counts_what_it_deletes(stored, monkeypatch):
    store, told = ArtifactStore(stored.root), []
    for number in range(3):
        with store.create("samples", f"{number}" * 40, {}) as draft:
            draft.write_json("summary.json", {})
    later = datetime.now(UTC) + timedelta(days=2)
    monkeypatch.setattr("foretune.flows.commands.garbage.GRACE_SECONDS", -later.timestamp())
    collect_garbage(stored.root, None, None, True, counted=lambda *counts: told.append(counts))
    assert told == [("deleting", done, 3, "artefacts") for done in (1, 2, 3)]
