"""The whole flow on a tiny Llama, on a real Prefect server, with nothing replaced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from foretune.flows.request import load_request
from foretune.flows.simulate import simulate
from foretune.storage.events import read_events
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from tests.orchestration.test_invalidation import SETTINGS

pytestmark = pytest.mark.slow

PASSES = {
    "samples",
    "supervision",
    "quality",
    "leaks",
    "baseline",
    "landscape",
    "heldout_landscape",
    "prompt_gain",
    "curvature",
    "influence",
    "path",
    "prediction",
    "checkpoint",
    "features",
    "preference",
    "sae_diff",
    "concepts",
    "feature_contexts",
    "null_deltas",
    "model_diff",
    "prompts",
    "base_answers",
    "predicted_answers",
    "answers",
    "behaviour",
    "behaviour_path",
    "causes",
    "cause_effects",
    "circuits",
    "concept_causes",
    "concept_behaviour",
    "residual_change",
    "report",
}


def start(request: Path, run_id: str, *overrides: str) -> tuple[dict, Run]:
    wanted = load_request(str(request), list(overrides))
    result = simulate(wanted, run_id=run_id)
    return result, Run(wanted.runtime.root, run_id)


def opened(result: dict, run: Run, name: str):
    stored = result["artifacts"][name]
    task, key = stored["uri"].split("/")[-2:]
    return run.store.open(ArtifactRef(task=task, key=key, uri=stored["uri"], sha256=stored["sha256"]))


@pytest.fixture(scope="module")
def request_file(tmp_path_factory, write_tiny_request) -> Path:
    return write_tiny_request(tmp_path_factory.mktemp("simulate"))


@pytest.fixture(scope="module")
def finished(prefect_server, request_file) -> tuple[dict, Run]:
    """The first run on this root; those of the tests come after it."""
    return start(request_file, "first")


def test_every_pass_leaves_its_artefact_and_the_result_says_where(finished):
    result, run = finished
    assert set(result["artifacts"]) == PASSES
    assert json.loads((run.place / "result.json").read_bytes()) == json.loads(json.dumps(result))
    assert (run.place / "report.html").size() > 1e6
    assert b'href="features.html#feature-' in (run.place / "report.html").read_bytes()
    assert "Features ·" in (run.read_features() or "")
    influence = opened(result, run, "influence").table("influence.parquet")
    assert sorted(influence["rank"]) == list(range(1, 19))
    assert (influence.sort_values("rank")["score"].diff().dropna() <= 0).all()
    assert all(result["invariants"].values())


def test_a_second_run_computes_nothing(finished, request_file):
    result, _ = finished
    again, run = start(request_file, "second")
    assert [e["task"] for e in read_events(run) if e["type"] == "pass_finished"] == []
    assert all(stored["cached"] for stored in again["artifacts"].values())
    assert again["summary"] == result["summary"]
    assert again["tasks"]["run"] == 0


@pytest.mark.parametrize(
    ("override", "runs"),
    [
        ("training.learning_rate=2e-3", set(SETTINGS["training.learning_rate=2e-3"])),
        ("report.top_rows=5", {"report"}),
        ("landscape.batch_tokens=512", set()),
    ],
)
def test_a_changed_setting_runs_only_what_reads_it(finished, request_file, override, runs):
    _, run = start(request_file, override.partition(".")[0], override)
    assert {e["task"] for e in read_events(run) if e["type"] == "pass_finished"} == runs
