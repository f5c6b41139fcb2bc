"""Events on disk and on S3: in order, from many threads, and there after a crash."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime

import numpy as np
import pytest

from foretune.storage import events
from foretune.storage.errors import StorageFault
from foretune.storage.events import EventLog, EventTail, read_events
from foretune.storage.runs import Run


@pytest.fixture
def run(root: str) -> Run:
    return Run(root, "20261122-211438-tickets-1a2b")


def test_a_run_without_events_has_none(run):
    assert read_events(run) == []


def test_events_are_read_as_they_were_emitted(run):
    with EventLog(run, source="training") as log:
        log.emit("step", step=1, loss=math.nan, layers=[math.inf, 1.0], norm=np.float32(0.5))
        log.emit("step", step=2, losses=np.array([1.0, np.nan]))
    first, second = read_events(run)
    assert (first["run_id"], first["type"], first["source"]) == (run.run_id, "step", "training")
    assert datetime.fromisoformat(first["time"]) <= datetime.fromisoformat(second["time"])
    assert datetime.fromisoformat(first["time"]).utcoffset().total_seconds() == 0
    assert (first["loss"], first["layers"], first["norm"]) == (None, [None, 1.0], 0.5)
    assert second["losses"] == [1.0, None]


def test_the_file_is_one_json_object_a_line(run):
    with EventLog(run) as log:
        for step in range(3):
            log.emit("step", step=step, text="two\nlines")
    lines = (run.place / "events.jsonl").read_bytes().decode().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2]
    assert run.place.list() == ["events.jsonl"]


def test_no_event_of_any_thread_is_lost(run, monkeypatch):
    monkeypatch.setattr(events, "PART_LINES", 50)
    log = EventLog(run)

    def work(name: int) -> None:
        for step in range(60):
            log.emit("step", thread=name, step=step)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    seen = [(event["thread"], event["step"]) for event in read_events(run)]
    assert sorted(seen) == [(name, step) for name in range(4) for step in range(60)]
    for name in range(4):
        assert [step for thread, step in seen if thread == name] == list(range(60))


def test_a_resumed_run_adds_to_its_events(run):
    for step in range(3):
        with EventLog(run) as log:
            log.emit("step", step=step)
    assert [event["step"] for event in read_events(run)] == [0, 1, 2]


def test_a_killed_run_leaves_what_it_flushed(run):
    code = f"""
import os, signal
from foretune.storage.events import EventLog
from foretune.storage.runs import Run
log = EventLog(Run({run.root!r}, {run.run_id!r}))
for step in range(5):
    log.emit("step", step=step)
log.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [event["step"] for event in read_events(run)] == list(range(5))
    with EventLog(run) as log:
        log.emit("step", step=5)
    assert [event["step"] for event in read_events(run)] == list(range(6))
    assert run.place.list() == ["events.jsonl"]


def test_a_forgotten_log_is_flushed_when_the_process_ends(run):
    code = f"""
from foretune.storage.events import EventLog
from foretune.storage.runs import Run
EventLog.of(Run({run.root!r}, {run.run_id!r})).emit("step", step=0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert [event["step"] for event in read_events(run)] == [0]


def test_half_a_line_is_left_out_and_the_next_one_is_whole(run):
    (run.place / "events.jsonl").write_bytes(b'{"type": "step", "step": 0}\n{"type": "st')
    with EventLog(run) as log:
        log.emit("step", step=1)
    assert [event["step"] for event in read_events(run)] == [0, 1]


def test_a_tail_reads_every_event_once_and_half_a_line_when_it_is_whole(run):
    one, two = b'{"type": "step", "step": 0}\n', b'{"type": "step", "step": 1}\n'
    tail, path = EventTail(run), run.place / "events.jsonl"
    assert tail.read() == []
    path.write_bytes(one + two[:15])
    assert [event["step"] for event in tail.read()] == [0]
    assert tail.read() == []
    path.write_bytes(one + two)
    assert [event["step"] for event in tail.read()] == [1]
    path.write_bytes(one + two + two[:15] + b"\n" + one)  # the half of a process that was killed
    assert [event["step"] for event in tail.read()] == [0]
    assert tail.read() == []


def test_a_process_has_one_log_of_a_run(run):
    log = EventLog.of(run)
    assert EventLog.of(Run(run.root, run.run_id)) is log
    log.emit("step", step=0)
    log.close()
    assert EventLog.of(run) is not log
    EventLog.of(run).close()
    assert len(read_events(run)) == 1


@pytest.fixture
def s3_run(s3_root: str) -> Run:
    return Run(s3_root, "20261122-211438-tickets-1a2b")


def test_parts_are_bounded_in_lines(s3_run, monkeypatch):
    monkeypatch.setattr(events, "PART_LINES", 10)
    log = EventLog(s3_run)
    for step in range(35):
        log.emit("step", step=step)
    parts = (s3_run.place / "events").list()
    assert [name[:10] for name in parts] == ["part-00001", "part-00002", "part-00003"]
    assert [event["step"] for event in read_events(s3_run)] == list(range(30))
    log.close()
    assert [event["step"] for event in read_events(s3_run)] == list(range(35))


def test_a_quiet_run_is_seen_within_seconds(s3_run, monkeypatch):
    monkeypatch.setattr(events, "PART_SECONDS", 0.1)
    log = EventLog(s3_run)
    log.emit("step", step=0)
    deadline = time.monotonic() + 5
    while not read_events(s3_run) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [event["step"] for event in read_events(s3_run)] == [0]
    log.close()


def test_two_processes_may_log_one_run(s3_run):
    logs = [EventLog(s3_run), EventLog(s3_run)]
    for step in range(4):
        logs[step % 2].emit("step", step=step)
    for log in logs:
        log.flush()
    assert [event["step"] for event in read_events(s3_run)] == [0, 1, 2, 3]
    for log in logs:
        log.close()
    assert [event["step"] for event in read_events(s3_run)] == [0, 1, 2, 3]


def test_a_crash_between_merging_and_deleting_doubles_nothing(s3_run, monkeypatch):
    log = EventLog(s3_run)
    log.emit("step", step=0)
    log.flush()
    part = s3_run.place / "events" / (s3_run.place / "events").list()[0]
    (s3_run.place / "events.jsonl").write_bytes(part.read_bytes())
    assert [event["step"] for event in read_events(s3_run)] == [0]
    log.close()
    assert [event["step"] for event in read_events(s3_run)] == [0]


def test_events_wait_for_a_place_that_is_down(faulty_s3, s3_run):
    log = EventLog(s3_run)
    log.emit("step", step=0)
    faulty_s3.inject("ServiceUnavailable", times=4, method="PUT")
    with pytest.raises(StorageFault):
        log.flush()
    log.emit("step", step=1)
    log.close()
    assert [event["step"] for event in read_events(s3_run)] == [0, 1]
