"""Ship or not on real runs of the tiny request: the command, its exit status and files, gates, and three versions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from foretune.flows.commands.ship import print_ship
from foretune.flows.commands.terminal import Terminal
from foretune.flows.commands.versions import print_versions, versions_of
from foretune.flows.gate import Gate, GateRule, GateShip
from foretune.flows.request import load_request
from foretune.flows.shipping import shipped
from foretune.flows.simulate import simulate
from foretune.flows.vet import verdict_table, vet
from foretune.storage.errors import BadInput
from foretune.storage.ledger import Ledger
from foretune.storage.runs import Run, new_run_id
from tests.flows.test_command_line import foretune

pytestmark = pytest.mark.slow

LEAN = (
    "sae=null", "dataset.preferences=null", "dataset.probes=null", "behaviour.items=10",
    "behaviour.suites=[arithmetic, sycophancy]", "behaviour.path={points: 1, orders: 2, nulls: 2, items: 8}",
)  # fmt: skip


@pytest.fixture(scope="module")
def request_file(tmp_path_factory, write_tiny_request: Callable[[Path], Path], tiny_rows: list[dict]) -> Path:
    """The tiny request with held-out rows of other words, so that none is given away, and enough of them."""
    file = write_tiny_request(tmp_path_factory.mktemp("ship"))
    colours = ["amber", "cobalt", "silver", "violet", "crimson", "ochre", "indigo", "teal", "ivory", "scarlet"]
    rows = [
        {"instruction": f"Why did {each} birds leave their {each} nests?", "output": f"Cold {each} winds drove them."}
        for each in colours
    ]
    (file.parent / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def versions(prefect_server, request_file: Path, tiny_rows: list[dict]) -> list[Run]:
    """Three versions of the dataset: without suites, with them, and with answers that ruin the model."""
    from datetime import UTC, datetime

    runs = []
    changed = [["behaviour.enabled=false"], [], ["training.learning_rate=3e-2"]]
    for number, overrides in enumerate(changed, start=1):
        rows = [row | {"output": "~^" * 30} if number == 3 else row for row in tiny_rows[: 15 + number]]
        train = request_file.parent / f"v{number}.jsonl"
        train.write_text("".join(json.dumps(row) + "\n" for row in rows))
        wanted = load_request(str(request_file), [*LEAN, f"dataset.path={train}", *overrides])
        run = Run(wanted.runtime.root, new_run_id(datetime(2026, 1, number, tzinfo=UTC), wanted.run_name))
        result = simulate(wanted, run_id=run.run_id)
        assert result["ship"] == run.read_result()["ship"]
        runs.append(run)
    Ledger(runs[1].root, "tiny").accept({"run_id": runs[1].run_id, "summary": runs[1].read_result()["summary"]})
    return runs


def refused(*words: str) -> str:
    """The one line with which a command refuses bad input."""
    done = foretune(*words)
    assert done.returncode == 2 and done.stdout == "", done
    (line,) = done.stderr.splitlines()
    return line


def test_the_command_decides_from_the_stored_run_alone(versions, tmp_path):
    run, junit = versions[1], tmp_path / "ship.xml"
    before = sorted(Path(run.root).rglob("*"))
    done = foretune("ship", run.run_id, "--root", run.root, "--json", "--junit", str(junit))
    told = json.loads(done.stdout.splitlines()[-1])
    stored = run.read_result()["ship"]
    assert (told["verdict"], told["reasons"]) == (stored["verdict"], stored["reasons"])
    assert done.returncode == (0 if told["verdict"] == "SHIP" else 3), done.stderr
    assert sorted(Path(run.root).rglob("*")) == before
    by_name = {each["name"]: each for each in told["conditions"]}
    assert set(by_name) == {"heldout_loss", "trust", "leakage", "suite.arithmetic", "suite.sycophancy"}
    loss = by_name["heldout_loss"]
    assert loss["floor"] > 0 and loss["low"] <= loss["value"] <= loss["high"]
    assert loss["floor_from"] == "6 null deltas and 2 other orders"
    noise = {"2 null deltas and 2 other orders on 8 items", "the smallest that counts"}
    assert {by_name[f"suite.{name}"]["floor_from"] for name in ("arithmetic", "sycophancy")} <= noise
    suites = ElementTree.parse(junit).getroot()
    assert suites.get("tests") == "5" and suites.get("name") == "foretune ship"
    failures = sum(each["outcome"] == "fail" for each in told["conditions"])
    assert suites.get("failures") == str(failures)


def test_what_ruins_the_model_is_not_shipped(versions):
    decision = shipped(versions[2])
    assert decision.verdict == "DON'T"
    assert any(reason.startswith("held-out loss rises by") for reason in decision.reasons)
    assert any("foretune whatif {run}" in remedy for remedy in decision.remedies)


def test_a_run_without_suites_says_which_setting_asks_them(versions):
    decision = shipped(versions[0])
    assert "no suite was asked: what the fine-tune breaks is not known" in [c.reason for c in decision.checks]
    assert any("behaviour.enabled: true" in remedy for remedy in decision.remedies)
    alone = shipped(versions[0], Gate(rules=[], ship=GateShip(suites=False)))
    assert not any(check.name == "suites" for check in alone.checks)


def test_a_gate_is_applied_too(versions, tmp_path):
    run = versions[1]
    rule = {"number": "behaviour.arithmetic.change", "below": 1.0, "reason": "sums should be perfect"}
    failed = shipped(run, Gate(rules=[rule]))
    assert failed.verdict == "DON'T"
    assert any("the gate fails it: behaviour.arithmetic.change is" in reason for reason in failed.reasons)
    warned = shipped(run, Gate(rules=[{**rule, "verdict": "warn"}]))
    assert warned.verdict == shipped(run).verdict
    ignored = shipped(run, Gate(rules=[], ship=GateShip(ignore=["arithmetic"])))
    assert {c.name: c.outcome for c in ignored.checks}["suite.arithmetic"] == "not judged"
    file = tmp_path / "gate.yaml"
    file.write_text("rules: []\nship: {allow: {arithmetik: 0.1}}\n")
    said = refused("ship", run.run_id, "--root", run.root, "--gate", str(file))
    assert "gate ship: no suite arithmetik in this run; nearest: arithmetic" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ship: {allow: {refusal: -0.1}}", "ship.allow"),
        ("ship: {alow: {refusal: 0.1}}", "ship.alow"),
        ("ship: 3", "ship"),
    ],
)
def test_bad_input_is_one_line(versions, tmp_path, text, said):
    file = tmp_path / "gate.yaml"
    file.write_text(text)
    assert said in refused("ship", "latest", "--root", versions[0].root, "--gate", str(file))


def test_no_such_run_and_a_file_that_is_there_are_one_line(versions, tmp_path):
    root = versions[0].root
    assert "nothing" in refused("ship", "nothing", "--root", root)
    there = tmp_path / "ship.xml"
    there.write_text("mine")
    assert "exists" in refused("ship", "latest", "--root", root, "--junit", str(there))
    assert there.read_text() == "mine"
    with pytest.raises(BadInput, match="has no prediction"):
        bare = Run(str(tmp_path / "root"), "20260101-000000-bare-0000")
        bare.write_request("dataset: {}\n")
        bare.write_result({"status": "failed"})
        shipped(bare)


def test_the_table_keeps_to_80_columns_and_plain_words(versions, capsys):
    for run in versions:
        print_ship(Terminal(width=80), run, shipped(run))
    said = capsys.readouterr().out
    copied = "  foretune whatif "  # a command is never broken
    assert max(len(line) for line in said.splitlines() if not line.startswith(copied)) <= 80
    assert "Ship?  DON'T." in said and "  FAIL  held-out loss" in said and "Noise of the suites: " in said


def test_the_report_and_prefect_say_it_first(versions):
    run = versions[2]
    page = (run.place / "report.html").read_bytes().decode()
    first = page[: page.index('class="columns worth"')]
    assert 'data-ship="DON&#39;T"' in first and "held-out loss rises by" in first
    assert f"foretune ship {run.run_id}" in first


def test_a_vetting_says_it_with_the_gate_s_allowances(versions, request_file):
    file = request_file.parent / "v2.jsonl"
    wanted = load_request(str(request_file), [*LEAN, f"dataset.path={file}", "name=vetted"])
    gate = Gate(rules=[GateRule(number="rows", above=1.0, reason="none at all")])
    verdict = vet(wanted, gate, return_state=True).result(raise_on_failure=False)
    assert verdict["ship"]["verdict"] == "DON'T"
    assert "the gate fails it: rows is" in "; ".join(verdict["ship"]["reasons"])
    assert "Ship?" in verdict_table(verdict) and "DON" in verdict_table(verdict)


def test_history_follows_every_suite_over_the_versions(versions, capsys):
    root = versions[0].root
    found = versions_of(root, "tiny", 10)
    first, second, third = found["versions"]
    assert first["suites"] is None and first["ship"] == "INCONCLUSIVE"
    told = versions[2].read_result()["behaviour"]
    for suite in told:
        kept = third["suites"][suite["suite"]]
        assert (kept["base"], kept["predicted"], kept["change"]) == tuple(
            suite[n] for n in ("base", "predicted", "change")
        )
        before = second["suites"][suite["suite"]]["predicted"]
        assert kept["against_accepted"] == pytest.approx(suite["predicted"] - before)
    assert third["ship"] == "DON'T"
    print_versions(Terminal(width=100), found | {"page": None})
    said = capsys.readouterr().out
    assert "  suites  -" in said and "  suites  arithmetic" in said and "  ship    DON'T" in said
    assert "suites against the accepted" in said
    done = foretune("history", "tiny", "--root", root, "--json")
    assert json.loads(done.stdout.splitlines()[-1])["versions"][2]["suites"] == third["suites"]
    page = (versions[2].place / "history.html").read_bytes().decode()
    assert 'data-chart="suites"' in page and "Behaviour by version" in page
