"""Processes beside each other on one root, and killed in the middle: what is stored stays, the next run heals."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from foretune.flows.commands.garbage import collect_garbage
from foretune.flows.request import load_request, to_yaml
from foretune.storage.artifacts import ArtifactStore
from foretune.storage.events import EventLog
from foretune.storage.ownership import state_of
from foretune.storage.places import Place
from foretune.storage.roots import MARKER
from foretune.storage.runs import Run
from tests.dag import run_dag
from tests.orchestration.test_faults import lean_on, request_on, start  # noqa: F401
from tests.roots import disk_root, own_cache, s3_client, s3_environment, s3_root, s3_server  # noqa: F401
from tests.storage.children import child
from tests.storage.conftest import root  # noqa: F401

pytestmark = pytest.mark.slow

OVERRIDE = "training.learning_rate=2e-3"


def simulated(request: Path, *overrides: str) -> None:
    """A whole run of a request, with its folder from the first file to the result."""
    wanted = load_request(str(request), list(overrides))
    run = Run(wanted.runtime.root, "inline")
    run.write_request(to_yaml(wanted))
    _, made = run_dag(request, *overrides)
    artifacts = {name: {"uri": ref.uri, "sha256": ref.sha256} for name, ref in made.items()}
    with EventLog(run) as log:
        log.emit("run_finished", status="completed")
    result = {"status": "completed", "request": {}, "artifacts": artifacts, "run_id": run.run_id}
    run.write_result(result)


def collecting(root: str, until: str) -> None:  # noqa: F811
    """Collect garbage as greedily as one may, with no grace at all, until the run has its result."""
    from foretune.flows.commands import garbage

    garbage.GRACE_SECONDS = garbage.DRAFT_SECONDS = -5.0
    while not (Run(root, until).place / "result.json").exists():
        if (Place(root) / MARKER).exists():
            collect_garbage(root, last=0, days=None, delete=True)
        time.sleep(0.05)


def test_two_simulations_of_different_requests_at_once_are_both_right(lean_on):  # noqa: F811
    both = [start(run_dag, lean_on), start(run_dag, lean_on, OVERRIDE)]
    for process in both:
        process.join(150)
    assert [process.exitcode for process in both] == [0, 0]
    for overrides in ([], [OVERRIDE]):
        step, _ = run_dag(lean_on, *overrides)
        assert step.computed == []
        assert all(step.run.store.find(ref.task, ref.key, full=True) for _, ref in step.steps)


def test_a_collection_beside_a_simulation_takes_nothing_of_it(lean_on):  # noqa: F811
    at = load_request(str(lean_on)).runtime.root
    Run(at, "inline").write_request(to_yaml(load_request(str(lean_on))))
    with ArtifactStore(at).create("quality", "f" * 40, {}) as draft:  # of no run
        draft.path("a.txt").write_text("loose")
    simulation, collection = start(simulated, lean_on), start(collecting, at, "inline")
    simulation.join(150)
    collection.join(30)
    assert (simulation.exitcode, collection.exitcode) == (0, 0)
    assert state_of(Run(at, "inline")) == "ended"
    step, _ = run_dag(lean_on)
    assert step.computed == []
    collect_garbage(at, last=None, days=None, delete=True)
    assert run_dag(lean_on)[0].computed == []


WRITES = {
    "the marker": "root_to_write(root)",
    "a request": "Run(root, 'r').write_request('dataset: {}')",
    "a result": "Run(root, 'r').write_result({'run_id': 'r'})",
    "a report": "Run(root, 'r').write_report('<html>')",
    "a pointer": "Ledger(root, 'a').accept({'run_id': 'r'})",
    "a verdict": "Ledger(root, 'a').keep('k', {'verdict': 'pass'})",
    "an output": "write_output(Place(root) / 'clean.jsonl', b'{}')",
}
KILLED = """
import os, signal, sys
from foretune.storage import disk
from foretune.storage.ledger import Ledger
from foretune.storage.outputs import write_output
from foretune.storage.places import Place
from foretune.storage.roots import root_to_write
from foretune.storage.runs import Run
root = {root!r}
if {first!r} != "root_to_write(root)":
    root_to_write(root)
if {die}:
    disk.{at} = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
{first}
"""


@pytest.mark.parametrize("at", ["os.replace", "os.fsync", "shutil.copyfileobj"])
@pytest.mark.parametrize("write", WRITES)
def test_killed_in_a_write_the_second_one_heals(disk_root, write, at):  # noqa: F811
    killed = child(KILLED.format(root=disk_root, first=WRITES[write], at=at, die=True))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    seen = [entry.name for entry in Place(disk_root).walk() if entry.name != MARKER]
    assert seen == []
    again = child(KILLED.format(root=disk_root, first=WRITES[write], at=at, die=False))
    assert again.returncode == 0, again.stderr
    assert all(entry.size for entry in Place(disk_root).walk())
    assert (Path(disk_root) / MARKER).exists()


def test_a_collection_that_is_killed_is_ended_by_the_next(disk_root):  # noqa: F811
    for number in range(3):
        with ArtifactStore(disk_root).create("quality", f"{number}" * 40, {}) as draft:
            draft.path("a.txt").write_text("a")
            draft.path("b.txt").write_text("b")
    run = Run(disk_root, "20260101-000000-tiny-0001")
    run.write_request("dataset: {}\nmodel: {}\nruntime: {}\n")
    run.write_result({"run_id": run.run_id, "artifacts": {}})
    old = time.time() - 7200
    for file in Path(disk_root).rglob("*"):
        os.utime(file, (old, old))
    code = """
import os, signal
from pathlib import Path
from foretune.flows.commands.garbage import collect_garbage
unlink, left = Path.unlink, [{files}]
def dying(self, **options):
    unlink(self, **options)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
Path.unlink = dying
collect_garbage({root!r}, 0, None, True)
"""
    for files in (1, 2, 4):
        assert child(code.format(root=disk_root, files=files)).returncode == -signal.SIGKILL
        for file in Path(disk_root).rglob("*"):
            os.utime(file, (old, old))
    assert collect_garbage(disk_root, last=0, days=None, delete=True)["spared"] == []
    assert [entry.name for entry in Place(disk_root).walk()] == [MARKER]
