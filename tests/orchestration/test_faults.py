"""What may happen to a simulation at night: killed in any pass, damaged or deleted artefacts, a second simulation
beside it, a root that cannot be written. Passes run in processes that really die."""

from __future__ import annotations

import builtins
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import prefect
import pytest
import yaml

from foretune.flows.commands.plan import make_plan
from foretune.flows.engines.threads import steps_on
from foretune.flows.request import RuntimeSettings, load_request
from foretune.flows.simulate import simulate
from foretune.storage.artifacts import ArtifactStore
from foretune.storage.drafts import Draft
from foretune.storage.events import read_events
from foretune.storage.manifest import FileRecord
from foretune.storage.runs import Run
from foretune.tasks.engine.passes import BACK_OFF, content_task
from tests.dag import run_dag
from tests.lean import made_lean

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_cache")]


def start(target, *arguments) -> multiprocessing.Process:
    """A process of its own, forked from one that has the heavy libraries loaded."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "transformers", "peft", "sae_lens", "tests.dag"])
    process = context.Process(target=within, args=(dict(os.environ), target, *arguments))
    process.start()
    return process


def within(environment: dict[str, str], target, *arguments) -> None:
    os.environ.update(environment)  # the process that this one is forked from has an older one
    target(*arguments)


@pytest.fixture(params=["disk", "s3"])
def request_on(request, write_tiny_request, tmp_path: Path) -> Path:
    """The tiny request with its storage root on disk, and, lean and with one shard, in a bucket."""
    file = write_tiny_request(tmp_path)
    if request.param == "s3":
        made_lean(file)
    content = yaml.safe_load(file.read_text())
    content["runtime"]["root"] = request.getfixturevalue(f"{request.param}_root")
    if request.param == "s3":
        content["shards"] = {"max_rows": 18}
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.fixture
def lean_on(request_on: Path) -> Path:
    """The same, lean wherever it is stored."""
    return made_lean(request_on)


def simulate_until(request: Path, task: str) -> None:
    """Run, and die inside `task`: with its first file half written, or before the manifest of a whole folder."""
    path, files = Draft.path, Draft.files

    def die(draft: Draft) -> None:
        if draft.folder.name.startswith(f"{task}-"):
            os.kill(os.getpid(), signal.SIGKILL)

    def half_written(draft: Draft, name: str) -> Path:
        found = path(draft, name)
        found.write_bytes(b"half a fi")
        die(draft)
        return found

    def without_manifest(draft: Draft) -> dict[str, FileRecord]:
        die(draft)
        return files(draft)

    Draft.path, Draft.files = half_written, without_manifest
    run_dag(request)


def damage(file: Path, content: bytes) -> None:
    """Change a file in place of the linked one, whose other names belong to other tests."""
    file.unlink()
    file.write_bytes(content)


def finished(run: Run) -> list[tuple[str, str]]:
    return [(e["task"], e["key"]) for e in read_events(run) if e["type"] == "pass_finished"]


def stored_file(request: Path, task: str, name: str) -> Path:
    return next((request.parent / "root" / "artifacts" / task).glob(f"*/{name}"))


def test_killed_in_every_pass_the_same_command_goes_on_and_computes_nothing_twice(request_on):
    planned = dict.fromkeys(task["task"] for task in make_plan(load_request(str(request_on)))["tasks"])
    for task in planned:  # in the order in which the wiring asks for them
        process = start(simulate_until, request_on, task)
        process.join(120)
        assert process.exitcode == -signal.SIGKILL, f"{task}: ended with {process.exitcode}"
    step, made = run_dag(request_on)
    assert step.computed == ["report"]
    assert {task for task, _ in step.steps} == set(planned)
    stored = {(each.task, each.key) for each in step.run.store.iterate() if each.complete}
    assert stored == {(ref.task, ref.key) for _, ref in step.steps}
    assert all(step.run.store.find(ref.task, ref.key, full=True) for ref in made.values())
    if step.run.place.is_local:  # events of a killed process on S3 are those of its last seconds short
        counts = Counter(finished(step.run))
        assert set(counts) == stored and set(counts.values()) == {1}


def test_two_simulations_of_one_request_at_once_are_both_right(lean_on):
    both = [start(run_dag, lean_on) for _ in range(2)]
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    step, _ = run_dag(lean_on)
    assert step.computed == []
    assert all(step.run.store.find(ref.task, ref.key, full=True) for _, ref in step.steps)


def test_a_deleted_or_truncated_file_is_absent_and_only_its_artefact_runs_again(warm_request, caplog):
    stored_file(warm_request, "landscape", "layers.parquet").unlink()
    whole = stored_file(warm_request, "prediction", "delta.safetensors")
    damage(whole, whole.read_bytes()[:-1])
    step, _ = run_dag(warm_request)
    assert sorted(set(step.computed)) in (["landscape", "prediction"], ["prediction"])
    assert "layers.parquet is missing" in caplog.text
    assert "delta.safetensors has" in caplog.text
    assert run_dag(warm_request)[0].computed == []


def test_a_flipped_bit_heals_within_the_run_and_is_said(prefect_server, warm_request, capsys):
    file = stored_file(warm_request, "influence", "influence.parquet")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    damage(file, bytes(content))
    result = simulate(load_request(str(warm_request)), run_id="healed")
    run = Run(str(warm_request.parent / "root"), "healed")
    said = [event for event in read_events(run) if event["type"] == "artifact_damaged"]
    assert len(said) == 1
    assert "influence.parquet is damaged" in said[0]["error"]
    assert [task for task, _ in finished(run)] == ["influence"]
    assert result["status"] == "completed"


def test_with_full_verification_a_flipped_bit_is_found_before_it_is_a_hit(prefect_server, warm_request):
    """The last artefact of the DAG is opened by nobody: sizes alone would let it pass."""
    file = stored_file(warm_request, "checkpoint", "model.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    damage(file, bytes(content))
    assert simulate(load_request(str(warm_request)), run_id="sizes")["tasks"]["run"] == 0
    request = load_request(str(warm_request), ["runtime.verify=full"])
    assert simulate(request, run_id="full")["tasks"]["run"] == 1
    assert [task for task, _ in finished(Run(str(warm_request.parent / "root"), "full"))] == ["checkpoint"]
    assert ArtifactStore(warm_request.parent / "root").find("checkpoint", file.parent.name, full=True)


@pytest.fixture
def full_disk(tmp_path: Path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)  # files may still be mapped


@pytest.fixture
def read_only(tmp_path: Path):
    folder = tmp_path / "frozen"
    folder.mkdir()
    mounts = [["mount", "--bind", folder, folder], ["mount", "-o", "remount,bind,ro", folder]]
    if any(subprocess.run(mount, capture_output=True).returncode for mount in mounts):
        pytest.skip("mounting read-only needs root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def run_command(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, list[str]]:
    """Exit status and lines on stderr of the command line, in this process."""
    from foretune.flows.cli import main

    monkeypatch.setattr(sys, "argv", ["foretune", *words])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code, capsys.readouterr().err.strip().splitlines()


@pytest.mark.parametrize(("root", "reason"), [("full_disk", "the disk is full"), ("read_only", "read-only")])
def test_a_root_that_cannot_be_written_is_one_line(
    prefect_server, tiny_request, capsys, monkeypatch, request, root, reason
):
    place = request.getfixturevalue(root)
    status, lines = run_command(capsys, monkeypatch, "simulate", str(tiny_request), "--root", str(place), "--quiet")
    assert status == 1
    assert len(lines) == 1, lines
    assert str(place) in lines[0]
    assert reason in lines[0]
    assert "--root" in lines[0]


CACHED = """
import json, sys
from foretune.flows.environment import prepare
prepare(command_line=True)
from foretune.flows.request import load_request
from foretune.flows.simulate import simulate
result = simulate(load_request(sys.argv[1]))
heavy = ("torch", "transformers", "peft", "sae_lens", "pandas", "scipy", "sklearn", "s3fs")
print(json.dumps([result["tasks"]["run"], [name for name in heavy if name in sys.modules]]))
"""


def test_a_fully_cached_simulation_imports_no_torch(prefect_server, warm_request):
    from prefect.settings import PREFECT_API_URL

    make_plan(load_request(str(warm_request)))  # a model is checked with torch once per machine
    environment = os.environ | {"PREFECT_API_URL": PREFECT_API_URL.value()}
    words = [sys.executable, "-c", CACHED, str(warm_request)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [0, []]


@content_task(version=1, libraries=())
def flaky(draft: Draft, run: Run, log: str, fault: str) -> None:
    """Fails twice with this error, then stores how often it was tried."""
    with open(log, "a") as lines:
        lines.write("tried\n")
    tried = len(Path(log).read_text().splitlines())
    if tried <= 2:
        raise getattr(builtins, fault)("no answer")
    draft.write_json("tried.json", tried)


@prefect.flow
def tried(root: str, log: str, fault: str) -> int:
    with steps_on(Run(root, "run"), RuntimeSettings(root=root)) as step:
        made = step(flaky, log=log, fault=fault)
        step.finish()
        return step.run.store.open(step.ready(made)).json("tried.json")


def test_a_fault_of_the_outside_world_is_tried_again_after_ever_longer_pauses(prefect_server, tmp_path, monkeypatch):
    assert list(BACK_OFF) == sorted(BACK_OFF) == flaky.retry_delay_seconds
    monkeypatch.setattr(flaky, "retry_delay_seconds", [0.1, 0.2, 0.3])
    assert tried(str(tmp_path / "root"), str(tmp_path / "log"), "ConnectionResetError") == 3


@pytest.mark.parametrize("fault", ["FileNotFoundError", "PermissionError", "ValueError"])
def test_a_fault_that_would_be_there_again_is_not_tried_again(prefect_server, tmp_path, fault):
    with pytest.raises(getattr(builtins, fault), match="no answer"):
        tried(str(tmp_path / "root"), str(tmp_path / "log"), fault)
    assert (tmp_path / "log").read_text() == "tried\n"
