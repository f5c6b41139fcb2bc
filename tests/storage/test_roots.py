"""The marker of a storage root: made by writers, read by all, and never by those that only read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from foretune.storage import roots
from foretune.storage.artifacts import ArtifactStore
from foretune.storage.errors import BadInput, StorageFault
from foretune.storage.events import EventLog
from foretune.storage.ledger import Ledger
from foretune.storage.ownership import is_root
from foretune.storage.places import Place
from foretune.storage.roots import FORMAT, MARKER, root_to_read, root_to_write
from foretune.storage.runs import Run, list_runs
from tests.storage.stored import make


def one_event(run: Run) -> None:
    with EventLog(run) as log:
        log.emit("x")


WRITERS = {
    "an artefact": lambda root: make(ArtifactStore(root)),
    "a run": lambda root: Run(root, "20260101-000000-a-0000").write_request("a: 1"),
    "an event": lambda root: one_event(Run(root, "20260101-000000-a-0000")),
    "a verdict": lambda root: Ledger(root, "a").keep("k", {}),
    "a pointer": lambda root: Ledger(root, "a").accept({"run_id": "a"}),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_the_first_that_writes_makes_the_marker(root, writer):
    WRITERS[writer](root)
    assert json.loads((Place(root) / MARKER).read_bytes()) == {"foretune_root": FORMAT}
    assert is_root(root)


def test_reading_makes_none(root):
    assert list_runs(root) == []
    assert Ledger(root, "a").accepted() is None
    assert Ledger(root, "a").verdict("k") is None
    assert list(ArtifactStore(root).iterate()) == []
    assert not is_root(root)
    assert Place(root).list() == []


@pytest.mark.parametrize(
    "words",
    [
        ["runs"],
        ["report", "latest"],
        ["watch", "latest"],
        ["lineage", "latest"],
        ["compare", "latest", "latest"],
        ["export", "latest", "out"],
        ["clean", "latest", "-o", "out.jsonl"],
        ["whatif", "latest"],
        ["gc"],
        ["gc", "--delete"],
    ],
    ids=" ".join,
)
def test_a_command_that_finds_no_root_leaves_none(words, tmp_path, monkeypatch, capsys):
    from foretune.flows.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["foretune", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr().err.strip().splitlines()
    assert (stop.value.code, len(said)) == ((0, 0) if words == ["runs"] else (2, 1))
    assert list(tmp_path.iterdir()) == []


def test_roots_of_before_the_marker_are_known_by_an_artefact_or_a_run(root):
    make(ArtifactStore(root))
    (Place(root) / MARKER).delete()
    assert is_root(root)
    other = f"{root}/other"
    for name in ("request.yaml", "events.jsonl", "result.json"):
        run = Run(f"{other}-{name[:3]}", "20260101-000000-a-0000")
        content = {
            "request.yaml": "dataset: {}\nmodel: {}\nruntime: {}\n",
            "events.jsonl": '{"run_id": "20260101-000000-a-0000", "type": "pass_started"}\n',
            "result.json": '{"run_id": "20260101-000000-a-0000", "artifacts": {}}',
        }[name]
        (run.place / name).write_bytes(content.encode())
        assert is_root(run.root), name


def test_runs_and_artefacts_of_others_make_no_root(root):
    place = Place(root)
    (place / "runs" / "exp1" / "result.json").write_bytes(b'{"accuracy": 0.9}')
    (place / "runs" / "exp1" / "events.out").write_bytes(b"x")
    (place / "artifacts" / "build" / "linux" / "manifest.json").write_bytes(b'{"files": {}}')
    (place / "artifacts" / "with space" / "x y" / "manifest.json").write_bytes(b"{}")
    assert not is_root(root)


def test_a_newer_format_is_one_line_for_readers_and_writers(root, monkeypatch):
    monkeypatch.setattr(roots, "_made_on_s3", set())
    (Place(root) / MARKER).write_bytes(json.dumps({"foretune_root": FORMAT + 1}).encode())
    said = f"stored in format {FORMAT + 1}, this foretune knows {FORMAT}; install a newer foretune"
    for use in (root_to_read, root_to_write, list_runs, is_root, lambda root: make(ArtifactStore(root))):
        with pytest.raises(BadInput, match=said) as caught:
            use(root)
        assert "\n" not in str(caught.value)
    assert Place(root).list() == [MARKER]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"foretune_root": "x"}', '{"name": "another tool"}'])
def test_a_marker_of_somebody_else_is_one_line_and_stays(root, content, monkeypatch):
    monkeypatch.setattr(roots, "_made_on_s3", set())
    (Place(root) / MARKER).write_bytes(content.encode())
    with pytest.raises(BadInput, match="not the marker of a storage root"):
        root_to_write(root)
    assert (Place(root) / MARKER).read_bytes() == content.encode()


@pytest.mark.parametrize("kind", ["a file", "below a file", "too long", "a device"])
def test_what_cannot_be_a_root_is_bad_input(tmp_path, kind):
    (tmp_path / "file").write_text("x")
    root = {
        "a file": tmp_path / "file",
        "below a file": tmp_path / "file" / "root",
        "too long": tmp_path / ("x" * 5000),
        "a device": Path("/dev/null"),
    }[kind]
    with pytest.raises(BadInput, match="--root") as caught:
        root_to_write(root)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "x"


def test_a_root_that_is_read_only_itself_is_named(tmp_path):
    frozen = tmp_path / "frozen"
    frozen.mkdir()
    mounts = [["mount", "--bind", frozen, frozen], ["mount", "-o", "remount,bind,ro", frozen]]
    if any(subprocess.run(mount, capture_output=True).returncode for mount in mounts):
        pytest.skip("mounting read-only needs root")
    try:
        with pytest.raises(StorageFault, match=r"frozen/foretune.json: cannot write: .*read-only.* another --root"):
            root_to_write(frozen)
    finally:
        subprocess.run(["umount", frozen], check=True)
