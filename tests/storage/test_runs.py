"""Runs on disk and on S3, finished or not."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

import pytest

from foretune.storage.errors import BadInput
from foretune.storage.events import EventLog, run_status
from foretune.storage.places import Place
from foretune.storage.runs import Run, list_runs, new_run_id, resolve_run

OLD = "20261121-090000-tickets-00aa"
NEW = "20261122-211438-tickets-1a2b"
OTHER = "20261122-080000-my-faq-ffff"


@pytest.fixture
def filled(root: str) -> str:
    """Three runs: one finished, one killed before its result, one whose result is torn."""
    Run(root, OLD).write_request("name: tickets\n")
    Run(root, OLD).write_result({"run_id": OLD, "status": "completed"})
    Run(root, NEW).write_request("name: tickets\n")
    (Place(root) / "runs" / OTHER / "result.json").write_bytes(b'{"run_id": "2026')
    (Place(root) / "runs" / "notes.txt").write_bytes(b"not a run")
    return root


def test_a_run_id_sorts_by_time_and_is_safe():
    now = datetime(2026, 11, 22, 22, 14, 38, tzinfo=timezone(timedelta(hours=1)))
    run_id = new_run_id(now, "Tickets / Q4: ../übung")
    assert re.fullmatch(r"20261122-211438-tickets-q4-bung-[0-9a-f]{4}", run_id)
    assert new_run_id(now, "tickets") < new_run_id(now + timedelta(seconds=1), "tickets")
    assert new_run_id(now.astimezone(UTC).replace(tzinfo=None), "a")[:15] == "20261122-211438"
    assert re.fullmatch(r"\d{8}-\d{6}-run-[0-9a-f]{4}", new_run_id(now, "???"))
    assert len(new_run_id(now, "long " * 100)) < 70
    assert len({new_run_id(now, "a") for _ in range(50)}) > 40


def test_what_a_run_wrote_is_read(root):
    run = Run(root, NEW)
    run.write_request("name: größe\n")
    run.write_report("<p>ü</p>")
    run.write_result({"status": "completed", "summary": {"loss": 1.5}})
    assert run.read_request() == "name: größe\n"
    assert run.read_report() == "<p>ü</p>"
    assert run.read_result()["summary"] == {"loss": 1.5}
    assert run.place.list() == ["report.html", "request.yaml", "result.json"]
    assert run.store.root == Place(root)


@pytest.mark.parametrize(
    ("source", "ended", "status"),
    [
        ("simulation", {"status": "failed", "error": "the disk is full"}, "failed"),
        ("simulation", {"status": "stopped"}, "stopped"),
        ("simulation", {"status": "completed"}, "unfinished"),  # killed before the result was written
        ("training", {"status": "completed"}, "completed"),
    ],
)
def test_without_a_result_the_events_say_how_a_run_ended(root, source, ended, status):
    run = Run(root, NEW)
    with EventLog(run, source) as log:
        log.emit("pass_failed", task="samples")
        log.emit("run_finished", **ended)
    assert run_status(run) == status
    with EventLog(run, source) as log:
        log.emit("pass_started", task="samples")
    assert run_status(run) == "unfinished"  # it goes on


def test_an_unfinished_run_says_so(filled):
    statuses = {run.run_id: run_status(run) for run in list_runs(filled)}
    assert statuses == {OLD: "completed", OTHER: "unreadable", NEW: "unfinished"}
    with pytest.raises(FileNotFoundError):
        Run(filled, NEW).read_result()
    with pytest.raises(BadInput, match=r"result\.json: unreadable \(.+\); run it again"):
        Run(filled, OTHER).read_result()


def test_runs_are_listed_oldest_first(filled):
    assert [run.run_id for run in list_runs(filled)] == [OLD, OTHER, NEW]
    assert [run.name for run in list_runs(filled)] == ["tickets", "my-faq", "tickets"]


@pytest.mark.parametrize(
    "name, run_id",
    [
        (OLD, OLD),
        ("20261121", OLD),
        ("latest", NEW),
        ("tickets", NEW),
        ("my-faq", OTHER),
        (f".foretune/runs/{OLD}/", OLD),
    ],
)
def test_a_run_is_found_by_what_people_type(filled, name, run_id):
    assert resolve_run(filled, name) == Run(Place(filled).uri, run_id)


@pytest.mark.parametrize(
    "name, said",
    [
        ("20261122", f"may be any of {OTHER}, {NEW}; give more of the id"),
        ("20261121-090000-ticket-00ab", f"no run .*nearest: {OLD}"),
        ("", "no run ''"),
    ],
)
def test_an_unknown_run_is_answered_with_the_nearest(filled, name, said):
    with pytest.raises(BadInput, match=said) as caught:
        resolve_run(filled, name)
    assert "\n" not in str(caught.value)


def test_a_root_without_runs_says_what_to_do(root):
    assert list_runs(root) == []
    with pytest.raises(BadInput, match="no runs here; start one with `foretune simulate` or give --root"):
        resolve_run(root, "latest")


def test_a_result_that_is_not_json_is_refused(root):
    with pytest.raises(ValueError, match="JSON compliant"):
        Run(root, NEW).write_result({"loss": float("nan")})
    assert run_status(Run(root, NEW)) == "unfinished"


def test_a_result_of_another_shape_is_unreadable(root):
    (Run(root, NEW).place / "result.json").write_bytes(b"[1]")
    assert run_status(Run(root, NEW)) == "unreadable"
