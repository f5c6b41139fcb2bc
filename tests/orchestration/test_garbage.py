"""Garbage collection and lineage over the artefacts of real runs."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from foretune.flows.commands.garbage import COPY_DAYS, GRACE_SECONDS, collect_garbage
from foretune.flows.commands.lineage import SAE, lineage_of, print_lineage
from foretune.flows.commands.plan import make_plan
from foretune.flows.request import load_request
from foretune.storage.artifacts import ArtifactStore
from foretune.storage.datasets import dataset_digest
from foretune.storage.runs import Run
from tests.dag import run_dag
from tests.orchestration.test_invalidation import SETTINGS
from tests.orchestration.test_plan import OTHER_RATE

CHANGE = "training.learning_rate=2e-3"


@pytest.fixture
def two_runs(warm_request: Path) -> Path:
    """The storage root of two finished runs that differ in the learning rate, an hour and more old."""
    root = warm_request.parent / "root"
    for number, overrides in enumerate(([], [CHANGE]), start=1):
        step, made = run_dag(warm_request, *overrides)
        artifacts = {name: {"uri": ref.uri, "sha256": ref.sha256} for name, ref in made.items()}
        wanted = load_request(str(warm_request), overrides).model_dump(mode="json")
        result = {"status": "completed", "request": wanted, "artifacts": artifacts}
        Run(str(root), f"2026010{number}-000000-tiny-0000").write_result(result)
    Run(str(root), step.run.run_id).place.delete()
    old = time.time() - 2 * GRACE_SECONDS
    for file in root.rglob("*"):
        os.utime(file, (old, old))
    return root


def waiting(request: Path, *overrides: str) -> int:
    return make_plan(load_request(str(request), list(overrides)))["run"]


def test_without_delete_nothing_is_touched(two_runs, warm_request):
    found = collect_garbage(str(two_runs), last=1, days=None, delete=False)
    assert found["runs"] == ["20260101-000000-tiny-0000"]
    assert found["artifacts"]
    assert waiting(warm_request) == waiting(warm_request, CHANGE) == 0


@pytest.mark.slow
def test_what_a_kept_run_needs_stays_down_to_its_shards(two_runs, warm_request):
    found = collect_garbage(str(two_runs), last=1, days=None, delete=True)
    assert {each["task"] for each in found["artifacts"]} == set(SETTINGS["training.learning_rate=2e-3"])
    assert found["bytes"] > 0
    assert waiting(warm_request, CHANGE) == 0
    assert waiting(warm_request) == len(found["artifacts"])


def test_keeping_every_run_deletes_nothing(two_runs, warm_request):
    assert collect_garbage(str(two_runs), last=None, days=None, delete=True)["artifacts"] == []
    assert collect_garbage(str(two_runs), last=2, days=None, delete=True)["artifacts"] == []


def test_young_artefacts_of_no_run_are_spared(two_runs, warm_request):
    run_dag(warm_request, "report.top_rows=7")
    found = collect_garbage(str(two_runs), last=None, days=None, delete=True)
    assert found["artifacts"] == []


@pytest.mark.parametrize("delete", [False, True])
def test_downloads_that_nothing_read_for_long_go_too(two_runs, tmp_path, monkeypatch, delete):
    monkeypatch.setenv("FORETUNE_CACHE", str(tmp_path / "cache"))
    names = {"0" * 64: (COPY_DAYS + 1) * 86400, "1" * 64: 86400}
    for name, age in names.items():
        copy = tmp_path / "cache" / "copies" / name / "model.safetensors"
        copy.parent.mkdir(parents=True)
        copy.write_bytes(b"12345")
        os.utime(copy, (time.time() - age,) * 2)
    found = collect_garbage(str(two_runs), last=None, days=None, delete=delete)
    assert found["cache_bytes"] == (5 if delete else 0)
    left = {folder.name for folder in (tmp_path / "cache" / "copies").iterdir()}
    assert left == ({"1" * 64} if delete else set(names))


def test_lineage_fits_a_screen_and_lists_everything_on_request(two_runs, capsys):
    from foretune.flows.commands.terminal import Terminal

    found = lineage_of(Run(str(two_runs), "20260102-000000-tiny-0000"))
    print_lineage(Terminal(width=200), found)
    short = capsys.readouterr().out.splitlines()
    assert len(short) < len(found["passes"]) + 20
    said = "\n".join(short)
    assert found["digests"]["train rows"][:12] in said and found["digests"][SAE][:12] in said
    assert f"torch {found['libraries']['torch'][0]}" in said and found["commits"][0][:12] in said
    assert all(any(each["task"] in line for line in short) for each in found["passes"])
    print_lineage(Terminal(width=200), found, everything=True)
    whole = capsys.readouterr().out
    assert all(name in whole for name in found["artifacts"])


def test_runs_of_one_request_are_identical_and_another_rate_is_named(two_runs):
    from foretune.flows.compare import differing_settings, identical

    a, b = (Run(str(two_runs), f"2026010{n}-000000-tiny-0000").read_result() for n in (1, 2))
    assert identical(a, a) and not identical(a, b)
    (changed,) = differing_settings(a["request"], b["request"])
    assert changed["setting"] == CHANGE.split("=")[0] and float(changed["b"]) == float(CHANGE.split("=")[1])


def test_lineage_leads_to_the_dataset_the_code_and_the_libraries(two_runs, warm_request):
    found = lineage_of(Run(str(two_runs), "20260102-000000-tiny-0000"))
    traced, wanted = found["artifacts"], load_request(str(warm_request))
    assert found["sources"]["dataset"]["path"] == wanted.dataset.path
    assert found["sources"]["model"] == wanted.model.model_dump(mode="json")
    assert len(traced) == sum(stored.complete for stored in ArtifactStore(two_runs).iterate()) - OTHER_RATE
    train = next(each for each in traced.values() if each["task"] == "samples" and each["inputs"]["role"] == "train")
    assert train["inputs"]["source"]["digest"] == dataset_digest(str(warm_request.parent / "train.jsonl"))
    shard = next(each for each in traced.values() if each["task"] == "landscape_shard")
    assert len(shard["inputs"]["model"]["weights"]["digest"]) == 64
    assert {"torch", "transformers"} <= set(shard["libraries"])
    assert found["digests"]["train rows"] == train["inputs"]["source"]["digest"]
    assert found["digests"]["model"] == shard["inputs"]["model"]["weights"]["digest"]
    assert found["digests"][SAE] and found["libraries"]["torch"]
    assert sum(each["artifacts"] for each in found["passes"]) == len(traced)
    prediction = next(each for each in traced.values() if each["task"] == "prediction")
    assert sum(name.startswith("landscape_shard/") for name in prediction["reads"]) == 5  # one of held-out rows
