"""What garbage collection may not take: what is not ours, what is going, what it cannot be certain of."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from foretune.flows.commands.garbage import collect_garbage
from foretune.storage import roots
from foretune.storage.artifacts import ArtifactStore
from foretune.storage.errors import BadInput
from foretune.storage.events import EventLog
from foretune.storage.places import Place
from foretune.storage.roots import MARKER
from foretune.storage.runs import Run, list_runs
from tests.roots import disk_root, own_cache, s3_client, s3_environment, s3_root, s3_server  # noqa: F401
from tests.storage.conftest import root  # noqa: F401

NOW, HOUR = time.time, 3600.0
OLD, NEW = "20260101-000000-tiny-0001", "20260102-000000-tiny-0002"


@pytest.fixture
def old(monkeypatch):
    """Everything that a store lists was written two hours ago, on disk and in a bucket: the clock has moved on."""
    from foretune.flows.commands import garbage
    from foretune.storage import ownership

    later = NOW() + 2 * HOUR

    class Later(garbage.datetime):
        @classmethod
        def now(cls, zone=None):
            return cls.fromtimestamp(later, zone)

    monkeypatch.setattr(garbage, "datetime", Later)
    monkeypatch.setattr(ownership.time, "time", lambda: later)


def artefact(at: str, task: str, key: str, **inputs) -> dict:
    with ArtifactStore(at).create(task, key, inputs) as draft:
        draft.path("a.txt").write_text(key)
    return {"uri": f"{at}/artifacts/{task}/{key}", "sha256": draft.ref.sha256}


def run_of(at: str, run_id: str, ended: bool = True, **artifacts) -> Run:
    run = Run(at, run_id)
    run.write_request("dataset: {}\nmodel: {}\nruntime: {}\n")
    with EventLog(run) as log:
        log.emit("pass_started", task="samples", label="samples", key="k")
        if ended:
            log.emit("run_finished", status="completed")
    if ended:
        run.write_result({"run_id": run_id, "status": "completed", "request": {}, "artifacts": artifacts})
    return run


@pytest.fixture
def two(root):  # noqa: F811
    """Two runs that share `samples`, each with a report of its own, and an artefact of no run."""
    shared = artefact(root, "samples", "a" * 40)
    for run_id, key in ((OLD, "b" * 40), (NEW, "c" * 40)):
        made = artefact(root, "report", key, samples={"task": "samples", "key": "a" * 40})
        run_of(root, run_id, report=made, samples=shared)
    artefact(root, "quality", "d" * 40)
    return root


def files(root: str) -> list[str]:  # noqa: F811
    return sorted(entry.name for entry in Place(root).walk())


def test_what_no_kept_run_needs_goes_and_what_is_foreign_stays(two, old):
    foreign = ["artifacts/build/linux/app.bin", "artifacts/build/linux/manifest.json", "artifacts/readme.txt"]
    foreign += ["runs/exp1/result.json", "runs/exp1/model.pt", f"runs/{OLD}/notes.md", "src/main.py"]
    for name in foreign:
        (Place(two) / name).write_bytes(b"{}")
    found = collect_garbage(two, last=1, days=None, delete=True)
    assert found["runs"] == [OLD]
    assert {(each["task"], each["key"][0]) for each in found["artifacts"]} == {("report", "b"), ("quality", "d")}
    left = files(two)
    assert set(foreign) <= set(left)
    assert [name for name in left if OLD in name] == [f"runs/{OLD}/notes.md"]
    assert ArtifactStore(two).find("samples", "a" * 40, full=True)
    assert ArtifactStore(two).find("report", "c" * 40, full=True)
    assert "first build/linux" in found["spared"][0]


def test_a_folder_that_is_no_root_is_refused_whole(root, old):  # noqa: F811
    for name in ("artifacts/a/b/c.txt", "runs/exp1/result.json", "src/main.py"):
        (Place(root) / name).write_bytes(b'{"accuracy": 1}')
    before = files(root)
    with pytest.raises(BadInput, match="not a storage root of foretune"):
        collect_garbage(root, last=0, days=None, delete=True)
    assert files(root) == before


def test_a_root_of_before_the_marker_gets_one(two, old, monkeypatch):
    monkeypatch.setattr(roots, "_made_on_s3", set())  # another process
    (Place(two) / MARKER).delete()
    collect_garbage(two, last=None, days=None, delete=False)
    assert not (Place(two) / MARKER).exists()
    collect_garbage(two, last=None, days=None, delete=True)
    assert (Place(two) / MARKER).exists()


@pytest.mark.parametrize("why", ["going", "unreadable", "unfollowable"])
def test_a_run_that_is_going_or_unreadable_keeps_its_folder_and_every_artefact(two, old, why):
    run = run_of(two, "20250101-000000-tiny-0000", ended=why != "going")
    if why != "going":
        torn = {"unreadable": b'{"run_id": "20', "unfollowable": json.dumps({"run_id": run.run_id}).encode()}[why]
        (run.place / "result.json").write_bytes(torn)
    found = collect_garbage(two, last=0, days=None, delete=True)
    assert found["artifacts"] == []
    assert run.run_id not in found["runs"]
    assert run.run_id in found["spared"][0] and "no artefact is deleted" in found["spared"][0]
    assert [each.run_id for each in list_runs(two)] == [run.run_id]
    assert len(list(ArtifactStore(two).iterate())) == 4


@pytest.mark.parametrize("content", [None, b"{"])
def test_a_kept_run_s_unreadable_manifest_keeps_what_it_may_have_been_made_of(two, old, content):
    manifest = Place(two) / "artifacts" / "report" / ("c" * 40) / "manifest.json"
    manifest.delete() if content is None else manifest.write_bytes(content)
    found = collect_garbage(two, last=1, days=None, delete=True)
    assert found["artifacts"] == []
    assert f"report/{'c' * 12} of a kept run has no readable manifest" in found["spared"][0]
    assert ArtifactStore(two).find("quality", "d" * 40)


def test_what_a_stopped_run_computed_stays_while_the_run_is_kept(root, old):  # noqa: F811
    artefact(root, "samples", "a" * 40)
    artefact(root, "quality", "d" * 40, samples={"task": "samples", "key": "a" * 40})
    run = run_of(root, NEW, ended=False)
    with EventLog(run) as log:
        log.emit("pass_finished", task="quality", key="d" * 40, cached=False, seconds=1.0, label="quality")
        log.emit("run_finished", status="stopped")
    assert collect_garbage(root, last=1, days=None, delete=True)["artifacts"] == []
    assert len(collect_garbage(root, last=0, days=None, delete=True)["artifacts"]) == 2


def test_the_newest_run_by_the_file_system_is_kept_when_the_clock_was_set_back(disk_root):  # noqa: F811
    """Its id says 1970, and so sorts before every other."""
    kept = run_of(disk_root, "19700101-000000-tiny-0000")
    for run_id in (OLD, NEW):
        for file in run_of(disk_root, run_id).place.local_path.rglob("*"):
            os.utime(file, (NOW() - 2 * HOUR,) * 2)
    assert collect_garbage(disk_root, last=1, days=None, delete=True)["runs"] == [OLD]
    assert (kept.place / "result.json").exists()
    assert collect_garbage(disk_root, last=None, days=30, delete=False)["runs"] != [kept.run_id]


@pytest.mark.parametrize("ahead", [HOUR, 365 * 24 * HOUR])
def test_what_a_clock_that_was_ahead_has_dated_is_young(two, ahead):
    if two.startswith("s3://"):
        pytest.skip("a bucket dates its objects by its own clock")
    for file in Path(two).rglob("*"):
        os.utime(file, (NOW() + ahead,) * 2)
    found = collect_garbage(two, last=0, days=0, delete=True)
    assert (found["runs"], found["artifacts"]) == ([], [])


def test_a_run_that_begins_meanwhile_ends_the_deletion(two, old, monkeypatch):
    delete = ArtifactStore.delete

    def begin_after_the_first(store, task, key):
        delete(store, task, key)
        run_of(two, "20260103-000000-tiny-0003", ended=False)

    monkeypatch.setattr(ArtifactStore, "delete", begin_after_the_first)
    found = collect_garbage(two, last=1, days=None, delete=True)
    assert len(found["artifacts"]) == 1
    assert "a run has begun meanwhile" in found["spared"][-1]


def test_it_says_what_it_is_about_to_do(two, old, capsys, monkeypatch):
    from foretune.flows.cli import main

    said = {}
    for word in ("", "--delete"):
        monkeypatch.setattr(sys, "argv", ["foretune", "gc", "--keep-last", "1", "--root", two, *filter(None, [word])])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 0
        said[word] = capsys.readouterr().out.splitlines()
    assert said[""][:3] == [f"  would delete run {OLD}", "  would delete 1 x quality", "  would delete 1 x report"]
    assert [line.replace("deletes", "would delete") for line in said["--delete"][:3]] == said[""][:3]
    assert "1 runs and 2 artefacts" in said["--delete"][-1]
