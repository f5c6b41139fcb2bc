"""The cache policy and the task decorator, on a real Prefect server, with passes of a few bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import prefect
import pytest
from pydantic import BaseModel, Field

from foretune.storage.events import EventLog, read_events
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.invariants import BrokenInvariant
from foretune.tasks.engine.keys import ContentKey, Fingerprint, identity, without_result, work_of
from foretune.tasks.engine.passes import content_task
from foretune.tasks.samples.rows import ShardRows
from foretune.tasks.samples.shards import Shard

pytestmark = pytest.mark.slow


class Settings(BaseModel):
    learning_rate: float = 1e-4
    batch_tokens: int = Field(8, json_schema_extra=without_result())


@content_task(version=1, libraries=())
def doubled(draft, run: Run, number: int, settings: Settings) -> None:
    draft.write_json("number.json", 2 * number)


@content_task(version=1, libraries=())
def summed(draft, run: Run, parts: list[ArtifactRef]) -> None:
    draft.write_json("number.json", sum(run.store.open(part).json("number.json") for part in parts))


@prefect.flow
def tiny(run: Run, numbers: list[int]) -> ArtifactRef:
    parts = [doubled.submit(run=run, number=n, settings=Settings()) for n in numbers]
    return summed.submit(run=run, parts=parts).result()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(str(tmp_path / "root"), "test")


def computed(run: Run) -> list[str]:
    EventLog.of(run).close()
    return [event["task"] for event in read_events(run) if event["type"] == "pass_finished"]


def test_a_second_run_computes_nothing_and_says_cached(prefect_server, run):
    first, second = tiny(run, [1, 2]), tiny(run, [1, 2])
    assert run.store.open(first).json("number.json") == 6
    assert (first.cached, second.cached) == (False, True)
    assert computed(run) == ["doubled", "doubled", "summed"]


def test_one_changed_input_runs_one_shard_and_the_reduction(prefect_server, run):
    tiny(run, [1, 2, 3])
    before = len(computed(run))
    tiny(run, [1, 2, 4])
    assert computed(run)[before:] == ["doubled", "summed"]


def test_a_deleted_artefact_is_recomputed_although_prefect_has_a_record(prefect_server, run):
    ref = tiny(run, [5])
    run.store.delete(ref.task, ref.key)
    again = tiny(run, [5])
    assert run.store.open(again).json("number.json") == 10
    assert computed(run)[-1] == "summed"


def test_a_copied_root_keeps_every_hit(prefect_server, run, tmp_path):
    import shutil

    tiny(run, [1, 2])
    shutil.copytree(run.root, tmp_path / "copy")
    moved = Run(str(tmp_path / "copy"), "elsewhere")
    ref = tiny(moved, [1, 2])
    assert ref.uri.startswith(str(tmp_path / "copy"))
    assert computed(moved) == []


def test_settings_that_do_not_affect_the_result_are_not_in_the_key():
    policy = ContentKey(task="t")
    keys = {policy.key_of({"settings": Settings(batch_tokens=n)}) for n in (1, 2)}
    assert len(keys) == 1
    assert policy.key_of({"settings": Settings(learning_rate=1.0)}) not in keys


def test_the_place_of_a_file_does_not_enter_the_key():
    assert identity(Fingerprint(uri="a", digest="d")) == identity(Fingerprint(uri="b", digest="d"))


def test_an_input_without_identity_is_refused():
    with pytest.raises(TypeError, match="set has no identity for a cache key"):
        identity({1, 2})


def test_keys_do_not_depend_on_the_process():
    code = (
        "from foretune.tasks.engine.keys import ContentKey; from tests.engine.test_keys import Settings;"
        "print(ContentKey(task='t').key_of({'b': 1, 'a': Settings()}))"
    )
    keys = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PATH": ""},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(keys) == 1


def test_a_new_version_is_a_new_key():
    arguments = {"a": 1}
    assert ContentKey(task="t", version=1).key_of(arguments) != ContentKey(task="t", version=2).key_of(arguments)


def test_the_manifest_records_the_declared_inputs(prefect_server, run):
    ref = tiny(run, [3])
    manifest = run.store.manifest(ref.task, ref.key)
    assert json.loads(json.dumps(manifest.inputs))["parts"][0]["task"] == "doubled"


@content_task(version=1, libraries=("torch",))
def trained(draft, run: Run) -> None:
    import torch

    weight = torch.nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    torch.optim.SGD([weight], lr=0.1).step()
    draft.write_json("number.json", float(weight))


def test_a_pass_that_steps_an_optimizer_fails_and_stores_nothing(run):
    with pytest.raises(BrokenInvariant, match="SGD.step was called"):
        trained.fn(run=run)
    assert list(run.store.iterate()) == []


def test_how_much_a_task_works_on_is_stored_and_no_part_of_its_key(run):
    samples = ArtifactRef(task="samples", key="k", uri="", sha256="")
    sets = [
        ShardRows(samples=samples, shard=Shard(prefix="0", digest="d", rows=3), encoding="e", tokens=tokens)
        for tokens in (40, 50)
    ]
    assert work_of({"run": run, "rows": sets[0], "parts": [samples, samples]}) == {"rows": 3, "tokens": 40, "parts": 2}
    assert identity(sets[0]) == identity(sets[1])
