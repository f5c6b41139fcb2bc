"""Roots that earlier versions wrote, archived: this version opens every one of them.

An archive holds request.yaml, its model, SAE and rows, and the root of one finished run (without the HTML pages).
raised.json names the passes that are new or got a new version since, and those that read them.
To add one: simulate the request of an older archive with the released version, pack the folder, name it after it.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from foretune.flows.commands.plan import make_plan
from foretune.flows.request import load_request
from foretune.storage.artifacts import ArtifactStore
from foretune.storage.digests import digest_of
from foretune.storage.events import read_events, run_status
from foretune.storage.manifest import Manifest
from foretune.storage.ownership import is_root, state_of
from foretune.storage.results import artifact_of
from foretune.storage.roots import MARKER
from foretune.storage.runs import Run
from foretune.tasks.engine.keys import library_versions
from foretune.tasks.report.concepts import NOISE
from foretune.tasks.report.findings import collect

ARCHIVES = sorted(Path(__file__).parent.glob("*.tar.xz"))
LEFT_OUT = {"report"}  # its page holds a script of 4.8 MB


@pytest.fixture(params=ARCHIVES, ids=lambda path: path.name)
def archived(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_in(folder: Path) -> Run:
    return Run(str(folder / "root"), next((folder / "root" / "runs").iterdir()).name)


def manifests_in(store: ArtifactStore) -> list[Manifest]:
    found = [store.manifest(stored.task, stored.key) for stored in store.iterate()]
    assert found and all(found)
    return [manifest for manifest in found if manifest is not None]


def test_every_artefact_opens_and_every_file_of_it_is_read(archived):
    store = ArtifactStore(archived / "root", full=True)
    for manifest in manifests_in(store):
        ref = store.find(manifest.task, manifest.key)
        assert ref is not None, f"{manifest.task} counts as absent"
        artifact = store.open(ref)
        for name in artifact.names():
            if name.endswith(".parquet"):
                assert artifact.arrow(name).column_names
            elif name.endswith(".safetensors"):
                artifact.tensors(name)
            elif name.endswith(".json"):
                artifact.json(name)


def test_the_run_its_events_and_its_result_open(archived):
    run = run_in(archived)
    result = run.read_result()
    assert run_status(run) == "completed"
    assert {event["type"] for event in read_events(run)} >= {"pass_started", "step", "pass_finished", "run_finished"}
    for name in set(result["artifacts"]) - LEFT_OUT:
        assert run.store.open(artifact_of(run, name)).names()


@pytest.mark.parametrize("listed", [1, 5, 20])
def test_as_many_concepts_are_listed_as_asked_for_and_the_answer_stays(archived, listed):
    run = run_in(archived)
    result = run.read_result()
    made = {name: artifact_of(run, name) for name in result["artifacts"] if name not in LEFT_OUT}
    found, every = collect(run, made, concepts=listed), collect(run, made, concepts=10_000)
    moved = run.store.open(made["sae_diff"]).arrow("features.parquet").to_pylist()
    sure = [row for row in moved if abs(row["z"]) > NOISE]
    assert len(found.strengthened) == min(listed, sum(row["change"] > 0 for row in sure))
    assert len(found.suppressed) == min(listed, sum(row["change"] < 0 for row in sure))
    assert found.answer == result["summary"]["answer"] and found.reasons == every.reasons


def test_the_recipe_of_every_stored_key_is_still_the_same(archived):
    for manifest in manifests_in(ArtifactStore(archived / "root")):
        recipe = {name: getattr(manifest, name) for name in ("task", "version", "libraries", "inputs")}
        assert digest_of(recipe)[:40] == manifest.key, manifest.task


def test_what_is_stored_is_a_hit_where_versions_are_the_same(archived):
    """With the libraries and pass versions of the archive, the request is planned as cached but for its page."""
    recorded: dict[str, str] = {}
    for manifest in manifests_in(ArtifactStore(archived / "root")):
        recorded |= manifest.libraries
    if library_versions(tuple(recorded)) != recorded:
        pytest.skip("other versions of the libraries are installed: their keys are other keys")
    planned = make_plan(load_request("request.yaml", []))
    waiting = {task["task"] for task in planned["tasks"] if task["state"] == "run"}
    raised = json.loads((Path(__file__).parent / "raised.json").read_text())
    assert waiting <= LEFT_OUT | set(raised), "a key moved without a new version of its pass"


def test_a_root_of_before_the_marker_is_known_by_its_content(archived):
    assert not (archived / "root" / MARKER).exists()
    assert is_root(str(archived / "root"))
    assert state_of(run_in(archived)) == "ended"


def test_versions_of_the_rows_are_told_apart_by_what_the_run_knows(archived):
    from typer.testing import CliRunner

    from foretune.flows.cli import app

    old = load_request("request.yaml").dataset.path
    lines = Path(old).read_text().splitlines(keepends=True)
    first = json.loads(lines[0])
    answer = list(first)[-1]
    changed = {**first, answer: "Quite another answer than there was."} if isinstance(first[answer], str) else None
    Path("new.jsonl").write_text("".join([json.dumps(changed) + "\n"] * bool(changed) + lines[2:]))
    words = ["diff", old, "new.jsonl", "--run", "latest", "--root", "root", "--json"]
    ended = CliRunner().invoke(app, words, standalone_mode=False)
    assert ended.exception is None, ended.exception
    *said, last = ended.stdout.splitlines()
    found = json.loads(last)
    gone = [row for row in found["removed"] if "influence" in row]
    assert gone and {"rank", "verdict", "score"} <= set(gone[0]["influence"])
    assert any("nats" in line and "rank" in line for line in said)
    assert not any("influence" in row for row in found["added"] + found["changed"])
