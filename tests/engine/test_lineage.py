"""OpenLineage events: one START and one end for the run and for every pass that it computes, each with what went in
and what came out; sent by OpenLineage's own client to where its own configuration says, and nowhere without one."""

from __future__ import annotations

import json
import logging
import os
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from foretune.storage.runs import Run
from foretune.tasks.engine import lineage
from foretune.tasks.engine.announcements import announce
from foretune.tasks.inputs.sources import resolve_sources
from foretune.tasks.report.publish import publish
from tests.dag import Simulated

SECRET = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    forget()
    yield
    forget()


def forget() -> None:
    for name in [name for name in os.environ if name.startswith("OPENLINEAGE_")]:
        del os.environ[name]  # the client sets some itself
    lineage._client.cache_clear()
    lineage._silenced.clear()
    lineage._runs.clear()


@pytest.fixture
def into_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], list[dict[str, Any]]]:
    """Configured by openlineage.yml; what was written since."""
    file = tmp_path / "lineage.jsonl"
    (tmp_path / "openlineage.yml").write_text(f"transport: {{type: file, log_file_path: {file}, append: true}}\n")
    return lambda: [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def published(simulated: Simulated, run_id: str) -> dict[str, Any]:
    """What `simulate` does after and around the passes, without an engine."""
    from foretune.flows.request import load_request

    root = Path(simulated.step.run.root)
    request = load_request(str(root.parent / "request.yaml"))
    run = Run(simulated.step.run.root, run_id)
    lineage.run_started(run, resolve_sources(request.dataset, request.model, request.sae).named())
    announce(run, "pass_started", task="samples", label="samples train", key=simulated.made["samples"].key)
    made = simulated.made["samples"]
    announce(run, "pass_finished", task="samples", label="samples train", key=made.key, cached=False, seconds=1.0)
    return publish.fn(run=run, request=request.model_dump(mode="json"), made=simulated.made, submitted=70)


@pytest.mark.slow
def test_a_run_and_its_passes_are_told_with_what_went_in_and_came_out(
    prefect_server, into_file, simulated, monkeypatch
):
    monkeypatch.setenv("OPENLINEAGE_NAMESPACE", "nightly")
    done = simulated("report.top_rows=5")
    published(done, "20261129-101010-tickets-1a2b")
    events = into_file()
    for event in events:
        uuid.UUID(event["run"]["runId"])
        assert {"eventType", "eventTime", "run", "job", "inputs", "outputs", "producer", "schemaURL"} <= set(event)
        assert event["job"]["namespace"] == "nightly"
        facets = [event["run"]["facets"], event["job"]["facets"]]
        for dataset in (*event["inputs"], *event["outputs"]):
            assert dataset["namespace"] and dataset["name"]
            facets += [dataset["facets"], dataset.get("inputFacets", {}), dataset.get("outputFacets", {})]
        assert all({"_producer", "_schemaURL"} <= set(facet) for each in facets for facet in each.values())
    states = Counter((event["job"]["name"], event["eventType"]) for event in events)
    assert states["tickets", "START"] == states["tickets", "COMPLETE"] == 1
    assert states["called.report", "START"] == states["called.report", "COMPLETE"] == 1, "computed in this run"
    assert not any(name == "called.landscape_shard" for name, _ in states), "stored before"

    whole = next(e for e in events if e["job"]["name"] == "tickets" and e["eventType"] == "COMPLETE")
    train = next(each for each in whole["inputs"] if each["name"].endswith("train.jsonl"))
    assert train["namespace"] == "file"
    source = done.store.manifest("samples", done.made["samples"].key).inputs["source"]
    assert train["facets"]["version"]["datasetVersion"] == source["digest"]
    assert train["inputFacets"]["dataQualityMetrics"]["rowCount"] == 18
    assert train["inputFacets"]["dataQualityAssertions"]["assertions"]
    versions = {each["facets"]["version"]["datasetVersion"] for each in whole["outputs"]}
    assert done.made["checkpoint"].sha256 in versions

    samples = next(e for e in events if e["job"]["name"] == "tickets.samples" and e["eventType"] == "COMPLETE")
    assert samples["run"]["facets"]["parent"]["run"]["runId"] == whole["run"]["runId"]
    assert train["name"] in {each["name"] for each in samples["inputs"]}
    [output] = samples["outputs"]
    assert output["facets"]["version"]["datasetVersion"] == done.made["samples"].sha256
    assert {"sample_id", "input_ids"} <= {each["name"] for each in output["facets"]["schema"]["fields"]}
    assert output["outputFacets"]["outputStatistics"]["size"] > 0
    report = next(e for e in events if e["job"]["name"] == "called.report" and e["eventType"] == "COMPLETE")
    assert len(report["inputs"]) >= len(done.made) - 2, "every artefact that it read"


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """A lineage server on this machine, named by OPENLINEAGE_URL; what it was sent."""
    got: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(201)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OPENLINEAGE_URL", f"http://127.0.0.1:{server.server_port}")
    yield got
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("status", "state"), [("failed", "FAIL"), ("stopped", "ABORT")])
def test_a_run_that_fails_is_told_without_a_secret(receiver, tmp_path, monkeypatch, status, state):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    run = Run(str(tmp_path / "root"), "20261129-101010-tickets-1a2b")
    lineage.run_started(run, {"train": ("s3://datasets/tickets/v7.jsonl", "d" * 64)})
    announce(run, "pass_failed", task="path", label="path", error=f"no entry with {SECRET}")
    announce(run, "run_finished", status=status, error=f"https://user:{SECRET}@host/ does not answer")
    announce(run, "run_finished", status=status, error="said twice")
    assert [event["eventType"] for event in receiver] == ["START", "FAIL", state]
    assert {event["job"]["name"] for event in receiver} == {"tickets", "tickets.path"}
    [dataset] = receiver[0]["inputs"]
    assert (dataset["namespace"], dataset["name"]) == ("s3://datasets", "tickets/v7.jsonl")
    assert "does not answer" in receiver[2]["run"]["facets"]["errorMessage"]["message"]
    assert SECRET not in json.dumps(receiver)


def test_without_a_configuration_nothing_is_sent(tmp_path, capsys):
    run = Run(str(tmp_path / "root"), "20261129-101010-tickets-1a2b")
    assert not lineage.is_on()
    lineage.run_started(run, {"train": ("rows.jsonl", "d" * 64)})
    announce(run, "run_finished", status="failed", error="x")
    assert lineage._client.cache_info().currsize == 0
    assert capsys.readouterr() == ("", "")


def test_a_server_that_is_not_there_is_one_line_and_fails_nothing(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__TYPE", "http")
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__URL", "http://127.0.0.1:9")
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__RETRY__TOTAL", "0")
    run = Run(str(tmp_path / "root"), "20261129-101010-tickets-1a2b")
    with caplog.at_level(logging.WARNING, logger="foretune"):
        lineage.run_started(run, {"train": ("rows.jsonl", "d" * 64)})
        announce(run, "run_finished", status="failed", error="x")
    [said] = [each.getMessage() for each in caplog.records if each.name == lineage.__name__]
    assert "OpenLineage" in said and "\n" not in said
