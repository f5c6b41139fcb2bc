"""What prefect.yaml promises, on a server and a worker: runs by request, by schedule and by event, and their end."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import yaml

from foretune.storage.events import read_events, run_status
from foretune.storage.ledger import Ledger
from foretune.storage.runs import list_runs
from foretune.tasks.report.address import report_address
from tests.deployments.postgres import binaries
from tests.deployments.team import PROJECT, Team, end, published
from tests.lean import made_lean

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shared_root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One root for the runs that only the first of must compute."""
    return str(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def request_body(tiny_request: Path, shared_root: str) -> dict:
    """The tiny request as an HTTP client would send it: plain JSON."""
    content = yaml.safe_load(made_lean(tiny_request).read_text())
    content["runtime"]["root"] = shared_root
    return content


def test_a_run_started_over_http_completes(team, request_body, shared_root):
    run = team.ended(team.run(team.deployment("simulate"), request=request_body))
    assert run["state_type"] == "COMPLETED", team.tail()
    result = list_runs(shared_root)[-1].read_result()
    where = report_address(list_runs(shared_root)[-1])
    line = f"Should I train? {result['summary']['answer']}. Report: {where}"
    assert (run["name"], run["state"]["message"]) == (result["run_id"], line)
    assert team.until(lambda: line in team.logs(run["id"], 20))
    assert result["tasks"]["run"] > 0
    shown = team.artifacts(run["id"])
    assert shown["foretune-progress-run"] == 100
    assert shown["foretune-progress-landscape-shard"] == 100
    assert "Should I train?" in shown["foretune-verdict"] and where in shown["foretune-verdict"]
    ours = read_events(list_runs(shared_root)[-1])
    theirs = team.until(
        lambda: (seen := team.events(run["id"], "foretune.")) and seen[-1]["event"] == "foretune.run.finished" and seen
    )
    for kind, name in (("pass_finished", "foretune.pass.finished"), ("signal", "foretune.signal")):
        assert Counter(e["payload"].get("task", e["payload"].get("name")) for e in theirs if e["event"] == name) == (
            Counter(e.get("task", e.get("name")) for e in ours if e["type"] == kind)
        )
    assert {e["resource"]["prefect.resource.id"] for e in theirs} == {f"foretune.run.{result['run_id']}"}


@pytest.mark.skipif(binaries() is None, reason="Debian's postgresql is not installed")
def test_the_runs_lie_in_postgres(team):
    import asyncpg

    async def counted() -> int:
        url = team.environment["PREFECT_SERVER_DATABASE_CONNECTION_URL"].replace("+asyncpg", "")
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetchval("select count(*) from deployment")
        finally:
            await connection.close()

    assert asyncio.run(counted()) >= 4


def test_a_request_that_does_not_validate_is_refused_before_anything_runs(team, request_body):
    request_body["training"]["learning_rate"] = -1
    with pytest.raises(httpx.HTTPStatusError, match="409"):
        team.run(team.deployment("simulate"), request=request_body)


def test_a_server_answers_nobody_but_who_has_the_string_and_the_token(team):
    url = f"{team.api}/flows/filter"
    assert httpx.get(f"{team.api}/health").is_success  # a probe has no string
    assert httpx.post(url, json={}, headers=team.csrf).status_code == 401
    assert httpx.post(url, json={}, headers=team.csrf, auth=("team", "guessed")).status_code == 401
    assert (
        httpx.post(url, json={}, auth=team.auth).status_code == 403
    )  # a page elsewhere, in a browser that is logged in
    assert httpx.post(url, json={}, headers=team.csrf, auth=team.auth).is_success
    elsewhere = {"Origin": "http://elsewhere.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in httpx.options(url, headers=elsewhere).headers


def test_a_run_that_asks_for_code_that_comes_with_a_model_is_refused_by_the_worker(team, request_body, tmp_path):
    request_body["model"]["trust_remote_code"] = True
    request_body["runtime"]["root"] = str(tmp_path / "root")
    run = team.ended(team.run(team.deployment("simulate"), request=request_body))
    assert (run["state_type"], run["state_name"]) == ("FAILED", "BadInput")
    assert "model.trust_remote_code: true is forbidden on this machine" in run["state"]["message"]
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (published(None), "event of dataset.helpdesk: no uri in its payload"),
        (published("/nowhere.jsonl"), "event of dataset.helpdesk: this request vets dataset.tickets"),
    ],
    ids=["no uri", "another request"],
)
def test_an_event_without_a_place_or_for_another_request_judges_nothing(team, request_body, tmp_path, event, said):
    root = request_body["runtime"]["root"] = str(tmp_path / "root")
    deployment, before = team.deployment("vet"), {run["id"] for run in team.runs(team.deployment("vet"))}
    request_body["name"] = "helpdesk" if "no uri" in said else "tickets"
    team.patch(deployment, {"parameters": {"request": request_body, "gate": None}})
    team.post("events", [published(str(tmp_path / "train.jsonl"), "others"), event])
    started = team.until(
        lambda: [r for r in team.runs(deployment) if r["id"] not in before and not r["auto_scheduled"]]
    )
    run = team.ended(started[0]["id"])
    assert (run["state_type"], run["state_name"]) == ("FAILED", "BadInput"), team.tail()
    assert said in run["state"]["message"]
    assert len(started) == 1  # the event of dataset.others started none
    assert list_runs(root) == []


def test_a_published_dataset_is_vetted(team, request_body, shared_root, tmp_path):
    deployment, uri = team.deployment("vet"), str(tmp_path / "train.jsonl")
    request_body["name"] = "helpdesk"
    team.patch(deployment, {"parameters": {"request": request_body, "gate": None}})
    team.post("events", [published(uri)])
    run = team.until(lambda: next((r for r in team.runs(deployment) if r["parameters"].get("dataset") == uri), None))
    run = team.ended(run["id"])
    assert (run["state_type"], run["state_name"]) == ("COMPLETED", "Accepted"), team.tail()
    assert Ledger(shared_root, "helpdesk").accepted()["dataset"] == uri
    wanted = {"filter": {"event": {"name": ["foretune.vetting.finished"]}}}
    event = team.until(lambda: team.post("events/filter", wanted)["events"])[0]
    assert event["resource"]["foretune.verdict"] == event["payload"]["verdict"] == "pass"


@pytest.mark.parametrize(("name", "hour", "days"), [("vet", "02:00", range(7)), ("backtest", "03:00", [6])])
def test_a_schedule_waits_until_somebody_resumes_it(team, name, hour, days):
    deployment = team.deployment(name)
    [schedule] = deployment["schedules"]
    assert schedule["active"] is False and team.runs(deployment, ["SCHEDULED"]) == [], "a demo does not run by itself"
    team.ask("PATCH", f"deployments/{deployment['id']}/schedules/{schedule['id']}", {"active": True})
    due = team.until(lambda: team.runs(team.deployment(name), ["SCHEDULED"]))
    assert {run["expected_start_time"][11:16] for run in due} == {hour}
    assert {datetime.fromisoformat(run["expected_start_time"]).weekday() for run in due} <= set(days)
    assert all(run["auto_scheduled"] for run in due)
    team.ask("PATCH", f"deployments/{deployment['id']}/schedules/{schedule['id']}", {"active": False})


def test_a_schedule_that_is_due_produces_a_run(team, request_body, shared_root):
    deployment, before = team.deployment("simulate"), list_runs(shared_root)[-1]
    schedule = {
        "schedule": {"interval": 3600, "anchor_date": (datetime.now(UTC) + timedelta(seconds=4)).isoformat()},
        "active": True,
        "parameters": {"request": request_body},
    }
    team.post(f"deployments/{deployment['id']}/schedules", [schedule])
    due = team.until(lambda: [r for r in team.runs(deployment) if r["auto_scheduled"] and r["start_time"]])
    assert team.ended(due[0]["id"])["state_type"] == "COMPLETED", team.tail()
    assert list_runs(shared_root)[-1] != before
    assert list_runs(shared_root)[-1].read_result()["tasks"]["run"] == 0
    shown = team.artifacts(due[0]["id"])
    assert {"foretune-progress-run", "foretune-verdict"} <= set(shown)  # with nothing to compute they are there, too
    assert shown["foretune-progress-run"] == 100
    signals = [event for event in read_events(list_runs(shared_root)[-1]) if event["type"] == "signal"]
    team.until(lambda: team.events(due[0]["id"], "foretune.run.finished"))
    assert len(team.events(due[0]["id"], "foretune.signal")) == len(signals)


def test_a_cancelled_run_stops_and_leaves_no_result(team, request_body, tmp_path):
    request_body["runtime"]["root"] = str(tmp_path / "root")
    run_id = team.run(team.deployment("simulate"), request=request_body)
    team.until(lambda: list_runs(request_body["runtime"]["root"]))
    team.post(f"flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLING"}})
    assert team.ended(run_id)["state_type"] == "CANCELLED", team.tail()
    assert [run_status(stored) for stored in list_runs(request_body["runtime"]["root"])] == ["stopped"]


@pytest.fixture
def forget_lost_runs(team: Team, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[[], None]]:
    """Removes the automations of deployments/automations.yaml, which wait for ten seconds, not minutes."""
    file = tmp_path / "automations.yaml"
    content = yaml.safe_load((PROJECT / "deployments" / "automations.yaml").read_text())
    for automation in content["automations"]:
        automation["trigger"]["within"] = 10
    if "pending" not in request.node.name:  # a process takes longer than that to start on a busy machine
        content["automations"] = content["automations"][:1]
    file.write_text(yaml.safe_dump(content))
    team.command("automation", "create", "--from-file", str(file))

    def forget() -> None:
        ours = {automation["name"] for automation in content["automations"]}
        for automation in team.post("automations/filter", {}):
            if automation["name"] in ours:
                team.ask("DELETE", f"automations/{automation['id']}")

    yield forget
    forget()


def test_a_killed_worker_is_replaced_and_its_run_goes_on_where_it_was(team, request_body, tmp_path, forget_lost_runs):
    root = request_body["runtime"]["root"] = str(tmp_path / "root")
    run_id = team.run(team.deployment("simulate"), request=request_body)

    def finished() -> list[str]:
        events = [event for run in list_runs(root) for event in read_events(run)]
        return [event["key"] for event in events if event["type"] == "pass_finished"]

    team.until(lambda: len(finished()) >= 4)
    end(team.worker)  # and the run's process with it
    done = set(finished())
    team.start_worker()
    lost = team.ended(run_id)
    assert lost["state_type"] == "CRASHED"
    assert "start the run again" in lost["state"]["message"]
    forget_lost_runs()  # ten quiet seconds are none too few for a run that works
    again = team.ended(team.run(team.deployment("simulate"), request=request_body))
    assert again["state_type"] == "COMPLETED", team.tail()
    result = list_runs(root)[-1].read_result()
    assert result["tasks"]["cached"] >= len(done)
    assert set(Counter(finished()).values()) == {1}


def test_a_run_left_pending_by_a_dead_worker_gives_its_place_to_the_next(
    team, request_body, tmp_path, forget_lost_runs
):
    request_body["runtime"]["root"] = str(tmp_path / "root")
    deployment = team.deployment("vet")
    end(team.worker)
    left = team.run(deployment, request=request_body)
    team.post(f"flow_runs/{left}/set_state", {"state": {"type": "PENDING"}})  # as a worker does before it starts a run
    team.start_worker()
    waiting = team.run(deployment, request=request_body)
    team.until(lambda: team.get(f"flow_runs/{waiting}")["state_name"] == "AwaitingConcurrencySlot")
    lost = team.ended(left)
    assert (lost["state_type"], lost["run_count"]) == ("CRASHED", 0)
    assert lost["state"]["message"].startswith("pending for half an hour: ")
    forget_lost_runs()  # the next one may take longer than ten seconds to start
    run = team.ended(waiting)
    assert run["state_name"] in ("Accepted", "Warned", "Refused"), team.tail()


NOWHERE = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret"}


@pytest.mark.parametrize(
    ("section", "value", "environment", "state", "said"),
    [
        ("dataset", {"path": "/nowhere/v7.jsonl"}, {}, "BadInput", "/nowhere/v7.jsonl: no dataset here; give a file"),
        ("model", {"name_or_path": "/nowhere/model"}, {}, "BadInput", "/nowhere/model"),
        (
            "dataset",
            {"path": "s3://datasets/v7/"},
            NOWHERE,
            "Failed",
            "s3://datasets/v7: S3 at http://127.0.0.1:9 failed",
        ),
    ],
    ids=["no dataset", "no model", "S3 is down"],
)
def test_a_nightly_run_that_fails_says_what_where_and_the_remedy_in_one_line(
    team, request_body, section, value, environment, state, said
):
    request_body[section] |= value
    run = team.ended(team.run(team.deployment("vet"), environment, request=request_body))
    line = run["state"]["message"]
    assert (run["state_type"], run["state_name"]) == ("FAILED", state), line
    assert line.startswith(said) or (section == "model" and said in line)
    assert "\n" not in line and ("; give " in line or "; check " in line)
    assert team.until(lambda: team.logs(run["id"], logging.WARNING)) == [line]
    told = team.until(lambda: team.events(run["id"], "foretune.vetting.failed"))
    assert [event["payload"]["error"] for event in told] == [line]


def test_the_pools_of_the_team_are_made_and_take_their_deployments(team):
    for template, kind in (("docker", "docker"), ("kubernetes-gpu", "kubernetes")):
        body = json.loads((PROJECT / "deployments" / "pools" / f"{template}.json").read_text())
        name = {"docker": "foretune-docker", "kubernetes": "foretune-gpu"}[kind]
        team.post("work_pools/", {"name": name, "type": kind, "base_job_template": body})
    team.command("deploy", "--name", "simulate-docker", "--name", "simulate-gpu", "--name", "vet-gpu")
    deployed = team.get("deployments/name/foretune-vet/vet-gpu")
    assert deployed["work_pool_name"] == "foretune-gpu"
    assert deployed["job_variables"]["image"] == "foretune:cuda"
    assert [schedule["schedule"]["cron"] for schedule in deployed["schedules"]] == ["0 2 * * *"]
