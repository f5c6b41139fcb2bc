"""Vetting on a tiny model: the pointer, idempotence, refusal, and the comparison in the report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from foretune.flows.commands.remaining import Remaining
from foretune.flows.compare import compare
from foretune.flows.gate import Gate
from foretune.flows.request import Request, load_request, to_yaml
from foretune.flows.vet import along_accepted, verdict_table, vet, vetting_plan
from foretune.storage.events import read_events
from foretune.storage.ledger import Ledger
from foretune.storage.runs import Run, list_runs
from tests.flows.test_command_line import assert_bad_input, foretune
from tests.lean import LEAN

pytestmark = pytest.mark.slow

LOSS = {"number": "heldout_loss_evaluated", "reason": "agreed"}
OPEN, SHUT = Gate(rules=[{**LOSS, "above": 1e6}]), Gate(rules=[{**LOSS, "above": 0.0}])


@pytest.fixture
def versions(tiny_request: Path, tiny_rows: list[dict]) -> Request:
    """The tiny request, whose dataset is the newest file of a folder that holds version 1."""
    folder = tiny_request.parent / "versions"
    folder.mkdir()
    publish(folder, 1, tiny_rows[:12])
    return load_request(str(tiny_request), [f"dataset.path={folder}", *LEAN])


def publish(folder: Path, number: int, rows: list[dict]) -> None:
    (folder / f"v{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def verdict_of(request: Request, gate: Gate, **options) -> tuple[str, dict]:
    state = vet(request, gate, return_state=True, **options)
    return state.name, state.result(raise_on_failure=False)


def test_an_accepted_version_moves_the_pointer_and_is_judged_once(prefect_server, versions):
    name, verdict = verdict_of(versions, OPEN)
    assert (name, verdict["verdict"], verdict["repeated"]) == ("Accepted", "pass", False)
    assert verdict["dataset"].endswith("/v1.jsonl")
    pointer = Ledger(versions.runtime.root, "tiny").accepted()
    assert (pointer["run_id"], pointer["digest"]) == (verdict["run_id"], verdict["digest"])
    _, again = verdict_of(versions, OPEN)
    assert again == {**verdict, "repeated": True}
    assert len(list_runs(versions.runtime.root)) == 1


def first_loss(request: Request, verdict: dict) -> float:
    return Run(request.runtime.root, verdict["run_id"]).read_result()["summary"]["heldout_loss_evaluated"]


def test_a_refused_version_leaves_the_pointer_and_is_compared_with_the_accepted_one(
    prefect_server, versions, tiny_rows
):
    _, first = verdict_of(versions, OPEN)
    publish(Path(versions.dataset.path), 2, tiny_rows[:9])
    name, second = verdict_of(versions, SHUT)
    assert (name, second["verdict"]) == ("Refused", "fail")
    assert second["crossings"][0]["reason"] == "agreed"
    assert second["accepted_before"] == first["run_id"]
    assert second["comparison"]["removed"] == 3
    losses = second["comparison"]["numbers"]["heldout_loss_evaluated"]
    assert losses["a"] == first_loss(versions, first) and losses["a"] != losses["b"]
    table = verdict_table(second).replace("\\", "")
    assert f"| accepted {first['run_id']} | this version | change |" in table
    assert f"{losses['b'] - losses['a']:+.3g}" in table
    assert Ledger(versions.runtime.root, "tiny").accepted()["run_id"] == first["run_id"]
    compared = compare(first["run_id"], second["run_id"], versions.runtime.root)  # once more, by the flow of its own
    run = Run(versions.runtime.root, second["run_id"])
    assert json.loads((run.place / "comparison.json").read_bytes()) == compared
    report = run.read_report()
    assert report.count('<section class="pass" id="comparison"') == report.count('href="#comparison"') == 1
    assert f'after <span class="mono">{first["run_id"]}</span>' in report
    assert "3 removed" in report


@pytest.mark.parametrize(("accepts", "state", "moved"), [("pass", "Warned", False), ("warn", "Accepted", True)])
def test_a_warning_passes_and_moves_the_pointer_only_where_the_gate_accepts_it(
    prefect_server, versions, accepts, state, moved
):
    gate = Gate(rules=[{**LOSS, "above": 0.0, "verdict": "warn"}], accepts=accepts)
    final = vet(versions, gate, return_state=True)
    verdict = final.result()
    assert (final.name, final.type.value, verdict["verdict"]) == (state, "COMPLETED", "warn")
    assert "agreed" in final.message
    pointer = Ledger(versions.runtime.root, "tiny").accepted()
    assert (pointer is not None) == verdict["accepted"] == moved


def test_the_command_says_no_with_status_3_and_another_gate_computes_nothing(prefect_server, versions, tmp_path):
    _, first = verdict_of(versions, OPEN)
    request, gate = tmp_path / "vetted.yaml", tmp_path / "gate.yaml"
    request.write_text(to_yaml(versions))
    gate.write_text("rules: [{number: heldout_loss_evaluated, above: 0, reason: agreed}]")
    done = foretune("vet", request, "--gate", gate, "--json")
    assert done.returncode == 3, done.stderr
    verdict = json.loads(done.stdout.splitlines()[-1])
    assert (verdict["verdict"], verdict["repeated"], verdict["digest"]) == ("fail", False, first["digest"])
    assert "agreed" in done.stdout
    assert Run(versions.runtime.root, verdict["run_id"]).read_result()["tasks"]["run"] == 0
    assert_bad_input(foretune("vet", request, "--gate", tmp_path / "none.yaml"), "no such file", "gate.yaml")


def test_a_dataset_given_by_an_event_takes_the_place_of_the_requests_own(prefect_server, versions, tiny_rows):
    published = Path(versions.dataset.path).parent / "published.jsonl"
    published.write_text("".join(json.dumps(row) + "\n" for row in tiny_rows[:6]))
    _, verdict = verdict_of(versions, OPEN, dataset=str(published))
    assert (verdict["name"], verdict["dataset"]) == ("tiny", str(published))


def test_a_version_is_predicted_along_the_path_of_the_accepted_one(prefect_server, versions, tiny_rows):
    anchored = {"along": "latest", "anchors": 2, "gradient_budget": 9.0, "gradient_passes": 9.0}
    request = Request.model_validate(versions.model_dump() | {"prediction": anchored})

    def path_of(run_id: str) -> tuple[str, str]:
        artifacts = Run(request.runtime.root, run_id).read_result()["artifacts"]
        summary = json.loads(Path(artifacts["prediction"]["uri"], "summary.json").read_text())
        return summary["path_of"], artifacts["path"]["uri"]

    _, first = verdict_of(request, OPEN)
    own, path = path_of(first["run_id"])
    assert own == "this run"
    publish(Path(request.dataset.path), 2, tiny_rows[:9])  # too few of the rows: it measures its own path
    name, second = verdict_of(request, SHUT)
    assert name == "Refused" and path_of(second["run_id"])[0] == "this run"
    publish(Path(request.dataset.path), 3, tiny_rows[:11])
    _, third = verdict_of(request, OPEN)
    assert path_of(third["run_id"]) == ("an earlier run", path)


def test_progress_counts_the_passes_of_the_newest_version_along_the_accepted_run(prefect_server, versions, tiny_rows):
    anchored = {"along": "latest", "anchors": 2, "gradient_budget": 9.0, "gradient_passes": 9.0}
    request = Request.model_validate(versions.model_dump() | {"prediction": anchored})
    verdict_of(request, OPEN)
    publish(Path(request.dataset.path), 2, tiny_rows[6:18])
    assert verdict_of(request, SHUT)[0] == "Refused"  # the latest run, which leads no one
    publish(Path(request.dataset.path), 3, tiny_rows[:11])
    newest = request.dataset.model_copy(update={"path": f"{request.dataset.path}/v3.jsonl"})
    planned = vetting_plan(request.model_copy(update={"dataset": newest}))
    waiting = {task["key"] for task in planned["tasks"] if task["state"] == "run"}
    shown = Remaining(lambda: planned)
    wait_until(lambda: shown.words != "")
    total = len(planned["tasks"])
    assert shown.words.startswith(f"{total - len(waiting)} of {total}") and 0 < len(waiting) < total
    _, verdict = verdict_of(request, OPEN)
    events = read_events(Run(request.runtime.root, verdict["run_id"]))
    computed = {event["key"] for event in events if event["type"] == "pass_finished"}
    assert computed == waiting
    for key in computed:
        shown.ended(key)
    assert shown.words == f"{total} of {total}"


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_an_accepted_run_that_is_gone_leads_no_one(versions):
    request = versions.model_copy(update={"prediction": versions.prediction.model_copy(update={"along": "latest"})})
    for accepted in (None, {"run_id": "20260101-000000-tiny-0001"}):
        assert along_accepted(request, accepted).prediction.along is None
    assert along_accepted(versions, {"run_id": "x"}) is versions


@pytest.mark.parametrize(
    ("published", "dataset", "said"),
    [
        ("dataset.tiny", "", "event of dataset.tiny: no uri in its payload"),
        ("dataset.tiny", None, "event of dataset.tiny: no uri in its payload"),
        ("dataset.tickets", "/data/tickets.jsonl", "event of dataset.tickets: this request vets dataset.tiny"),
        (None, " ", "dataset: an empty place"),
    ],
)
def test_the_event_of_another_dataset_or_of_no_place_vets_nothing(prefect_server, versions, published, dataset, said):
    state = vet(versions, OPEN, dataset=dataset, published=published, return_state=True)
    assert (state.name, state.message.startswith(said)) == ("BadInput", True), state.message
    assert list_runs(versions.runtime.root) == []


def test_a_place_that_nobody_filled_in_is_bad_input(versions):
    request = Path(versions.runtime.root).parent / "asked.yaml"
    request.write_text(to_yaml(versions))
    assert_bad_input(foretune("vet", request, "--dataset", ""), "dataset: an empty place")
