"""Every place where something is deleted, with files of somebody else beside what goes: those stay."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from foretune.storage.artifacts import ArtifactStore
from foretune.storage.cache import cache_dir, new_draft, sweep_cache
from foretune.storage.events import EVENTS, EventLog, read_events
from foretune.storage.ownership import GOING_SECONDS, delete_run, is_root, state_of
from foretune.storage.places import Place
from foretune.storage.runs import Run
from tests.storage.children import child
from tests.storage.stored import KEY, folder, make

NOTES = b"what somebody wrote down here"
RUN = "20260101-000000-tiny-0000"


def names(place: Place) -> list[str]:
    return sorted(entry.name for entry in place.walk())


def test_an_artefact_goes_and_a_note_in_its_folder_stays(store):
    make(store)
    (folder(store) / "notes.md").write_bytes(NOTES)
    (folder(store) / "deep" / "notes.md").write_bytes(NOTES)
    store.delete("landscape", KEY)
    assert names(folder(store)) == ["deep/notes.md", "notes.md"]
    ref = make(store, "again")
    assert store.find("landscape", KEY, full=True)
    assert store.open(ref).path("a.txt").read_text() == "again"
    assert (folder(store) / "notes.md").read_bytes() == NOTES


def test_an_artefact_alone_leaves_no_folder(disk_root):
    store = ArtifactStore(disk_root)
    make(store)
    store.delete("landscape", KEY)
    assert not folder(store).local_path.exists()
    assert Path(disk_root).is_dir()


@pytest.mark.parametrize("content", [None, b"{}", b"\xff", b'{"manifest_version": 2}'])
def test_a_folder_without_a_manifest_of_ours_stays(store, content):
    place = store.root / "artifacts" / "build" / "linux"
    (place / "app.bin").write_bytes(NOTES)
    if content is not None:
        (place / "manifest.json").write_bytes(content)
    before = names(place)
    assert store.own_files("build", "linux") == []
    store.delete("build", "linux")
    assert names(place) == before


def test_a_manifest_of_another_key_deletes_nothing(store):
    make(store)
    other = store.root / "artifacts" / "landscape" / "copy"
    (other / "a.txt").write_bytes(NOTES)
    (other / "manifest.json").write_bytes((folder(store) / "manifest.json").read_bytes())
    store.delete("landscape", "copy")
    assert names(other) == ["a.txt", "manifest.json"]


def test_a_torn_artefact_is_replaced_around_a_note(disk_root):
    store = ArtifactStore(disk_root)
    make(store)
    (folder(store) / "notes.md").write_bytes(NOTES)
    (folder(store) / "a.txt").delete()
    ref = make(store, "whole again")
    assert store.open(ref).path("a.txt").read_text() == "whole again"
    assert store.find("landscape", KEY, full=True)
    assert (folder(store) / "notes.md").read_bytes() == NOTES


def test_half_sent_objects_are_ours_by_their_digest(s3_root):
    store = ArtifactStore(s3_root)
    make(store)
    (folder(store) / "manifest.json").delete()
    (folder(store) / "notes.md").write_bytes(NOTES)
    assert store.own_files("landscape", KEY) == ["a.txt", "deep/b.bin"]
    store.delete("landscape", KEY)
    assert names(folder(store)) == ["notes.md"]


def test_an_interrupted_deletion_is_ended_by_the_next(disk_root):
    make(ArtifactStore(disk_root))
    killed = child(f"""
import os, signal
from foretune.storage.artifacts import ArtifactStore
from foretune.storage.disk import Path
unlink = Path.unlink
def once(self, **options):
    unlink(self, **options)
    os.kill(os.getpid(), signal.SIGKILL)
Path.unlink = once
ArtifactStore({disk_root!r}).delete("landscape", {KEY!r})
""")
    assert killed.returncode == -9, killed.stderr
    store = ArtifactStore(disk_root)
    assert names(folder(store)) == ["deep/b.bin", "manifest.json"]
    assert store.find("landscape", KEY) is None
    store.delete("landscape", KEY)
    assert not folder(store).local_path.exists()


def test_the_sweep_takes_old_drafts_by_their_names(disk_root):
    store = ArtifactStore(disk_root)
    make(store)
    drafts = Path(disk_root) / "artifacts" / ".drafts"
    foreign = ["letters", "landscape-x", "a-1-zzzzzzzz"]
    for name in (new_draft("landscape-0123456789abcdef"), *foreign):
        (drafts / name).mkdir(parents=True)
        (drafts / name / "text").write_bytes(NOTES)
    (drafts / "loose.txt").write_bytes(NOTES)
    for path in (*drafts.rglob("*"), drafts):
        os.utime(path, (0, 0))
    assert store.sweep(older_than=3600) == 1
    assert sorted(path.name for path in drafts.iterdir()) == sorted([*foreign, "loose.txt"])


def test_drafts_from_a_clock_that_was_ahead_are_young(disk_root):
    store = ArtifactStore(disk_root)
    make(store)
    draft = Path(disk_root) / "artifacts" / ".drafts" / new_draft("landscape-x")
    draft.mkdir(parents=True)
    os.utime(draft, (time.time() + 7200,) * 2)
    assert store.sweep(older_than=3600) == 0
    assert draft.exists()


def test_uploads_of_others_below_the_prefix_go_on(s3_root, s3_client):
    bucket = s3_root.split("/")[2]
    foreign = ["root/artifacts/build.zip", "root/artifacts/build/linux/app.bin", "root/other/x/y/z"]
    for key in (*foreign, f"root/artifacts/landscape/{KEY}/a.bin"):
        s3_client.create_multipart_upload(Bucket=bucket, Key=key)
    assert ArtifactStore(s3_root).sweep(older_than=3600) == 1
    left = {upload["Key"] for upload in s3_client.list_multipart_uploads(Bucket=bucket)["Uploads"]}
    assert left == set(foreign)


def test_a_cache_folder_that_holds_other_things_keeps_them(own_cache):
    """FORETUNE_CACHE may be a storage root, a repository, the user's whole cache."""
    foreign = ["artifacts/landscape/k/manifest.json", "copies/letters/a.txt", "drafts/novel/1.txt", "rates/2026.jsonl"]
    foreign += ["digests/README", "manifests/index.json", "offload/model/w.dat"]
    ours = [f"artifacts/{'a' * 64}/a.txt", f"copies/{'b' * 64}/rows.jsonl", f"digests/{'c' * 64}"]
    ours += [f"manifests/{'d' * 64}", f"drafts/{new_draft('landscape-x')}/a", f"rates/quality-{'e' * 16}.jsonl"]
    ours += [f"offload/{'f' * 64}/w.dat"]
    for name in (*foreign, *ours):
        (own_cache / name).parent.mkdir(parents=True, exist_ok=True)
        (own_cache / name).write_bytes(NOTES)
        os.utime(own_cache / name, (1, 1))
    assert sweep_cache(older_than=3600) == len(ours) * len(NOTES)
    assert sorted(p.relative_to(cache_dir()).as_posix() for p in own_cache.rglob("*") if p.is_file()) == sorted(foreign)


def ended_run(root: str) -> Run:
    run = Run(root, RUN)
    run.write_request("dataset: {}\nmodel: {}\nruntime: {}\n")
    with EventLog(run) as log:
        log.emit("run_finished", status="completed")
    run.write_report("<html>")
    run.write_comparison({})
    run.write_whatif({}, "<html>")
    run.write_result({"run_id": RUN, "status": "completed", "request": {}, "artifacts": {}})
    return run


def test_a_run_goes_and_a_note_in_its_folder_stays(root):
    run = ended_run(root)
    (run.place / "notes.md").write_bytes(NOTES)
    (run.place / "events" / "mine.txt").write_bytes(NOTES)
    (Place(root) / "runs" / f"{RUN}-mine" / "result.json").write_bytes(NOTES)
    delete_run(run)
    assert names(Place(root) / "runs") == sorted(
        [
            f"{RUN}-mine/result.json",
            f"{RUN}/events/mine.txt",
            f"{RUN}/notes.md",
        ]
    )
    assert state_of(run) == "foreign"


def test_a_run_alone_leaves_no_folder(disk_root):
    run = ended_run(disk_root)
    (run.place.local_path / f".{new_draft('report.html')}").write_bytes(b"half")
    delete_run(run)
    assert not run.place.local_path.exists()


def test_merging_events_takes_its_own_parts(s3_root):
    run = Run(s3_root, RUN)
    (run.place / "events" / "mine.txt").write_bytes(NOTES)
    with EventLog(run) as log:
        log.emit("run_finished", status="completed")
    assert names(run.place) == sorted(["events/mine.txt", EVENTS])
    assert (run.place / "events" / "mine.txt").read_bytes() == NOTES
    assert len(read_events(run)) == 1


def test_states_of_a_run_and_of_a_folder_of_others(root):
    run = Run(root, RUN)
    assert state_of(run) == "foreign"
    (run.place / "checkpoint.pt").write_bytes(NOTES)
    assert state_of(run) == "foreign"
    run.write_request("dataset: {}\nmodel: {}\nruntime: {}\n")
    assert state_of(run) == "going"
    (run.place / "result.json").write_bytes(b'{"run_id": "' + RUN.encode() + b'", "artifacts": [1]}')
    assert state_of(run) == "unreadable"
    (run.place / "result.json").write_bytes(b"{")
    assert state_of(run) == "unreadable"


def test_a_run_that_was_silent_for_a_day_is_given_up(disk_root):
    run = Run(disk_root, RUN)
    run.write_request("dataset: {}\nmodel: {}\nruntime: {}\n")
    file = run.place.local_path / "request.yaml"
    for age, state in ((GOING_SECONDS - 60, "going"), (GOING_SECONDS + 60, "given up"), (-7200, "going")):
        os.utime(file, (time.time() - age,) * 2)
        assert state_of(run) == state


def test_forgetting_prefect_s_record_takes_one_file(tmp_path):
    from types import SimpleNamespace

    from foretune.tasks.engine.keys import _forget

    for name in ("foretune/a/quality/k1", "foretune/a/quality/k2", "theirs"):
        (Place(tmp_path) / name).write_bytes(NOTES)
    _forget(SimpleNamespace(result_storage=SimpleNamespace(basepath=str(tmp_path))), "foretune/a/quality/k1")
    assert names(Place(tmp_path)) == ["foretune/a/quality/k2", "theirs"]


def test_a_result_that_nobody_can_read_makes_no_root(tmp_path):
    (tmp_path / "runs" / "r").mkdir(parents=True)
    (tmp_path / "runs" / "r" / "result.json").write_text("mine")
    assert not is_root(str(tmp_path))
