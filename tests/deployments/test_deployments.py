"""What prefect.yaml promises, on a server and a worker: runs by request, by schedule and by event, and their end."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import yaml

from storage.ledger import Ledger
from storage.runs import latest, list_runs
from tests.deployments.team import published

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shared_root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One root for the runs that only the first of must compute."""
    return str(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def request_body(tiny_request: Path, shared_root: str) -> dict:
    """The tiny request as an HTTP client would send it: plain JSON."""
    content = yaml.safe_load(tiny_request.read_text())
    del content["sae"], content["dataset"]["preferences"]
    content["runtime"]["root"] = shared_root
    return content


def test_a_run_started_over_http_completes(team, request_body, shared_root):
    run = team.ended(team.run(team.deployment("simulate"), request=request_body))
    assert (run["state_type"], run["state"]["message"]) == ("COMPLETED", None), team.tail()
    assert latest(shared_root).read_result()["tasks"]["run"] > 0


def test_a_request_that_does_not_validate_is_refused_before_anything_runs(team, request_body):
    request_body["training"]["learning_rate"] = -1
    with pytest.raises(httpx.HTTPStatusError, match="409"):
        team.run(team.deployment("simulate"), request=request_body)


def test_a_published_dataset_is_vetted(team, request_body, shared_root, tmp_path):
    deployment, uri = team.deployment("vet"), str(tmp_path / "train.jsonl")
    team.patch(deployment, {"parameters": {"request": request_body, "gate": None}})
    team.post("events", [published(uri)])
    run = team.until(lambda: next((r for r in team.runs(deployment) if r["parameters"].get("dataset") == uri), None))
    run = team.ended(run["id"])
    assert (run["state_type"], run["state_name"]) == ("COMPLETED", "Accepted"), team.tail()
    assert Ledger(shared_root, "tiny").accepted()["dataset"] == uri
    wanted = {"filter": {"event": {"name": ["foretune.vetting.finished"]}}}
    event = team.until(lambda: team.post("events/filter", wanted)["events"])[0]
    assert event["resource"]["foretune.verdict"] == event["payload"]["verdict"] == "pass"


@pytest.mark.parametrize(("name", "hour", "days"), [("vet", "02:00", range(7)), ("backtest", "03:00", [6])])
def test_every_schedule_has_its_next_runs(team, name, hour, days):
    due = team.until(lambda: team.runs(team.deployment(name), ["SCHEDULED"]))
    assert {run["expected_start_time"][11:16] for run in due} == {hour}
    assert {datetime.fromisoformat(run["expected_start_time"]).weekday() for run in due} <= set(days)
    assert all(run["auto_scheduled"] for run in due)


def test_a_schedule_that_is_due_produces_a_run(team, request_body, shared_root):
    deployment, before = team.deployment("simulate"), latest(shared_root)
    schedule = {
        "schedule": {"interval": 3600, "anchor_date": (datetime.now(UTC) + timedelta(seconds=4)).isoformat()},
        "active": True,
        "parameters": {"request": request_body},
    }
    team.post(f"deployments/{deployment['id']}/schedules", [schedule])
    due = team.until(lambda: [r for r in team.runs(deployment) if r["auto_scheduled"] and r["start_time"]])
    assert team.ended(due[0]["id"])["state_type"] == "COMPLETED", team.tail()
    assert latest(shared_root) != before
    assert latest(shared_root).read_result()["tasks"]["run"] == 0


def test_a_cancelled_run_stops_and_leaves_no_result(team, request_body, tmp_path):
    request_body["runtime"]["root"] = str(tmp_path / "root")
    run_id = team.run(team.deployment("simulate"), request=request_body)
    team.until(lambda: list_runs(request_body["runtime"]["root"]))
    team.post(f"flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLING"}})
    assert team.ended(run_id)["state_type"] == "CANCELLED", team.tail()
    assert [stored.status for stored in list_runs(request_body["runtime"]["root"])] == ["stopped"]
