"""A run predicted along the path that an earlier one measured: when, with which numbers, and what it spares."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from foretune.flows.commands.plan import make_plan
from foretune.flows.request import load_request
from foretune.storage.errors import BadInput
from foretune.storage.runs import Run
from foretune.tasks.prediction.earlier_path import SKETCH, jaccard, sketch
from tests.conftest import request_beside
from tests.dag import run_dag

pytestmark = pytest.mark.slow

ANCHORED = ("prediction.anchors=4", "prediction.gradient_budget=9", "prediction.gradient_passes=9")
LATEST = (*ANCHORED, "prediction.along=latest")


@pytest.fixture(scope="module")
def measured_once(first_run, tmp_path_factory) -> Path:
    request = request_beside(first_run, tmp_path_factory.mktemp("measured"))
    finish(request, "20260101-000000-tiny-0001", *ANCHORED)
    return request


@pytest.fixture
def measured(measured_once, tmp_path) -> Path:
    """A request whose newest finished run has measured its own path; the file has two tests' worth of rows."""
    return request_beside(measured_once, tmp_path)


def finish(request: Path, run_id: str, *overrides: str):
    """Run, and leave the result of a run behind, as publishing does."""
    step, made = run_dag(request, *overrides)
    named = {name: {"uri": ref.uri, "sha256": ref.sha256, "cached": ref.cached} for name, ref in made.items()}
    run = Run(step.run.root, run_id)
    run.write_result({"status": "completed", "artifacts": named})
    return step, made


def delta(step, made) -> torch.Tensor:
    moved = step.run.store.open(made["prediction"]).tensors("delta.safetensors")
    return torch.cat([moved[name].flatten() for name in sorted(moved)])


def summary(step, made) -> dict:
    return step.run.store.open(made["prediction"]).json("summary.json")


def cosine(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(first.double(), second.double(), dim=0))


@pytest.mark.parametrize(
    "change", ["training.learning_rate=7e-4", "training.epochs=1", "training.lr_scheduler_type=cosine"]
)
def test_another_schedule_goes_along_the_measured_path(measured, change):
    step, made = run_dag(measured, *LATEST, change)
    assert "path" not in step.computed and "prediction" in step.computed
    found = summary(step, made)
    assert found["path_of"] == "an earlier run" and found["anchors"] == 1
    shutil.rmtree(Path(step.run.root) / "runs")
    own_step, own = run_dag(measured, *LATEST, change)
    assert "path" in own_step.computed and summary(own_step, own)["path_of"] == "this run"
    frozen = run_dag(measured, change, "prediction.anchors=1")
    led, itself = delta(step, made), delta(own_step, own)
    assert cosine(led, itself) > 0.999
    assert float((led - itself).norm()) < 0.5 * float((delta(*frozen) - itself).norm())


def test_dropped_rows_go_along_it_and_more_of_them_do_not(measured, caplog):
    file = measured.parent / "train.jsonl"
    rows = file.read_text().splitlines(keepends=True)
    file.write_text("".join(rows[1:]))
    step, made = run_dag(measured, *LATEST)
    assert "path" not in step.computed
    assert summary(step, made)["gradient_samples_used"] == 17
    file.write_text("".join(rows[4:]))
    with caplog.at_level("WARNING"):
        step, _ = run_dag(measured, *LATEST)
    assert "path" in step.computed
    assert "run 20260101-000000-tiny-0001 does not serve this one: only 78% of the rows are in both" in caplog.text


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("training.learning_rate=2e-3", "it leads 0.00"),
        ("adapter.lora_alpha=8", "another adapter"),
        ("training.optimizer=sgd", "another training.optimizer"),
        ("prediction.evaluation_rows=2", "another set of evaluated"),
    ],
)
def test_a_path_that_does_not_serve_is_measured_and_the_reason_said(measured, change, why, caplog):
    with caplog.at_level("WARNING"):
        step, made = run_dag(measured, *LATEST, change)
    assert "path" in step.computed and summary(step, made)["path_of"] == "this run"
    assert why in caplog.text


def test_every_anchor_of_a_measured_path_is_stored(measured):
    step, made = run_dag(measured, *ANCHORED)
    found = step.run.store.open(made["path"]).json("path.json")
    assert [anchor["step"] for anchor in found["anchors"]] == found["anchor_steps"][1:] != []
    for anchor in found["anchors"]:
        assert 0.0 <= anchor["coefficient"] <= 1.0 and anchor["correction"] > 0.0
        assert anchor["blocks"] and anchor["loss_change"] < 0.0


def test_the_run_itself_is_found_again_whatever_ran_after_it(measured):
    finish(measured, "20260102-000000-tiny-0002", *LATEST, "training.learning_rate=7e-4")
    finish(measured, "20260103-000000-tiny-0003", *ANCHORED, "training.learning_rate=3e-3")
    for change in ((), ("training.learning_rate=7e-4",), ("training.learning_rate=3e-3",)):
        step, _ = run_dag(measured, *LATEST, *change)
        assert step.computed == []


def test_the_plan_says_the_same(measured):
    wanted = load_request(str(measured), [*LATEST, "training.learning_rate=7e-4"])
    planned = make_plan(wanted)["tasks"]
    assert not any(task["task"] == "path" for task in planned)
    step, _ = run_dag(measured, *LATEST, "training.learning_rate=7e-4")
    assert sorted(t["task"] for t in planned if t["state"] == "run") == sorted(step.computed)


def test_a_path_along_a_path_is_the_first_one(measured):
    step, made = finish(measured, "20260102-000000-tiny-0002", *LATEST, "training.learning_rate=9e-4")
    first = made["path"]
    step, made = run_dag(measured, *LATEST, "training.learning_rate=8e-4")
    assert "path" not in step.computed and made["path"].key == first.key


def test_a_named_run_serves_and_one_that_is_not_there_is_bad_input(measured):
    step, _ = run_dag(measured, *ANCHORED, "prediction.along=20260101-000000-tiny-0001", "training.learning_rate=7e-4")
    assert "path" not in step.computed
    with pytest.raises(BadInput, match="no run 'nowhere'"):
        run_dag(measured, *ANCHORED, "prediction.along=nowhere")


def test_a_path_that_is_gone_is_measured(measured, caplog):
    shutil.rmtree(measured.parent / "root" / "artifacts" / "path")
    with caplog.at_level("WARNING"):
        step, _ = run_dag(measured, *LATEST, "training.learning_rate=7e-4")
    assert "path" in step.computed and "its path is gone" in caplog.text


def test_without_an_earlier_run_the_path_is_its_own(warm_request, caplog):
    with caplog.at_level("WARNING"):
        step, _ = run_dag(warm_request, *LATEST)
    assert "path" in step.computed and not caplog.text


def test_one_anchor_and_the_closed_form_have_nothing_to_go_along(measured):
    step, made = run_dag(measured, "prediction.anchors=1", "prediction.along=latest", "training.learning_rate=7e-4")
    assert summary(step, made)["path_of"] == "this run"
    step, made = run_dag(measured, "prediction.rule=rayleigh", "prediction.along=latest")
    assert "path" not in made


@pytest.mark.parametrize("size", [20, 2000])
def test_what_two_sets_share_is_read_off_their_sketches(size):
    ids = [f"{number:064x}" for number in range(size)]
    assert jaccard(sketch(ids), sketch(reversed(ids))) == 1.0
    assert jaccard(sketch(ids), sketch(ids[size // 10 :])) == pytest.approx(0.9, abs=0.05)
    assert jaccard(sketch(ids), sketch(f"{number:064x}" for number in range(size, 2 * size))) == 0.0
    assert len(sketch(ids)) == min(size, SKETCH)
