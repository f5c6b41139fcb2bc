"""Which rows cause it, from the watched scores to the report, the terminal and the commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from foretune.flows.cli import app
from foretune.flows.commands.cleaned_rows import cleaned_rows
from foretune.flows.commands.leaving_out import predicted_without
from foretune.flows.request import load_request, to_yaml
from foretune.storage.errors import BadInput
from foretune.storage.runs import Run
from foretune.tasks.report.causes import causes_block, causes_command, causes_lines
from tests.conftest import request_beside
from tests.dag import Simulated, run_dag

pytestmark = pytest.mark.slow

LOOSE = ["influence.outlier=0.2", "influence.neutral=0", "training.learning_rate=5e-3"]
"""Of eighteen rows of one kind some stand out by that."""


@pytest.fixture(scope="module")
def loose(first_run, tmp_path_factory) -> tuple[Path, Simulated]:
    """The tiny request simulated so that rows stand out, and its request."""
    request = request_beside(first_run, tmp_path_factory.mktemp("loose"))
    return request, run_dag(request, *LOOSE)


@pytest.fixture
def run(loose) -> Run:
    """That run as a command finds it."""
    path, done = loose
    request = load_request(str(path), LOOSE)
    run = Run(request.runtime.root, "called")
    run.write_request(to_yaml(request))
    artifacts = {name: {"uri": ref.uri, "sha256": ref.sha256, "cached": False} for name, ref in done.made.items()}
    run.write_result({"run_id": "called", "status": "completed", "artifacts": artifacts})
    return run


def summaries(done: Simulated) -> tuple[dict, dict]:
    return done.summary("causes"), done.summary("cause_effects")


def test_rows_that_erode_a_suite_and_do_not_help_are_named(loose):
    done = loose[1]
    (suite,) = done.summary("causes")["suites"]
    watched = {row["row"]: row for row in done.table("influence", "watched")}
    helping = {row["row"] for row in done.table("influence", "influence") if row["verdict"] == "helps"}
    beyond = {row for row, each in watched.items() if each["verdict"] == "harms" and each["z"] < -0.2}
    assert beyond and {row["row"] for row in suite["rows"]} == beyond - helping
    assert suite["helping"] == len(beyond & helping)
    assert [row["z"] for row in suite["rows"]] == sorted(row["z"] for row in suite["rows"])
    assert all(abs(watched[row]["score"]) > 1.96 * watched[row]["error"] for row in beyond)


def test_the_rows_raise_a_signal_with_the_command_that_drops_them(loose):
    done = loose[1]
    causes = done.summary("causes")
    rows = causes["suites"][0]["rows"]
    (signal,) = [signal for signal in done.found.signals if signal["name"] == "behaviour_poison"]
    assert signal["value"] == len(rows) > 0
    worse = done.summary("behaviour")["suites"][0]["verdict"] == "worse"
    assert signal["severity"] == ("critical" if worse else "warn")
    condition = next(each for each in done.found.conditions if each.name == "behaviour_poison")
    assert condition.row_count == len(rows)
    assert condition.remedy == "foretune clean {run} --drop-causes refusal -o clean.jsonl"


def test_without_them_the_run_is_replayed_and_asked_again(loose):
    done = loose[1]
    causes, effects = summaries(done)
    (effect,) = effects["suites"]
    told = done.summary("behaviour")["suites"][0]
    assert (effect["predicted"], effect["base"]) == pytest.approx((told["predicted"], told["base"]))
    assert effect["change"] == pytest.approx(effect["without"] - effect["predicted"])
    assert effect["without"] != effect["predicted"] and effect["control"] != effect["without"]
    assert set(effects["loss"]) == {"predicted", "without", "control"}
    lines = causes_lines(causes_block(causes, effects))
    assert lines[0].startswith("refusal: row") and f"instead of {effect['predicted']:.3g}" in lines[1]
    assert "the run without them was not replayed" in causes_lines(causes_block(causes, None))
    assert causes_command(causes_block(causes, effects), "r").endswith("--drop-causes refusal -o clean.jsonl")


def test_the_report_lists_them_with_their_texts(loose):
    done = loose[1]
    page = done.store.open(done.made["report"]).text("report.html")
    section = page.split('id="causes"')[1].split("</section>")[0]
    (suite,) = done.summary("causes")["suites"]
    for row in suite["rows"][:10]:
        assert f'<a href="#row-{row["row"]}">' in section
        assert f'data-fact="cause.refusal.{row["row"]}.z"' in section
    assert "Without them the predicted refusal is" in section


def test_where_no_row_stands_out_nothing_is_replayed(first):
    causes, effects = summaries(first)
    assert effects["suites"] == [] or causes["suites"][0]["rows"]
    quiet = {"suites": [{**causes["suites"][0], "rows": []}]}
    assert causes_lines(causes_block(quiet, None)) == [] and causes_command(causes_block(quiet, None), "r") == ""


def test_clean_drops_what_causes_it(run, loose):
    (suite,) = loose[1].summary("causes")["suites"]
    cleaned = cleaned_rows(run, 0, [], drop_causes=["refusal"])
    assert {row["row"] for row in cleaned["dropped"]} == {row["row"] for row in suite["rows"]}
    assert cleaned["dropped"][0]["why"].startswith("moves refusal by -")
    with pytest.raises(BadInput, match="--drop-causes arithmetic: run called did not watch it; it watched refusal"):
        cleaned_rows(run, 0, [], drop_causes=["arithmetic"])


def test_the_command_says_what_the_pass_does(run, loose):
    _, effects = summaries(loose[1])
    told = predicted_without(run, None, ["refusal"], lambda *_: None)
    suites = {suite["suite"]: suite for suite in told["suites"]}
    assert set(suites) == {"refusal", "arithmetic", "instruction_format"}
    (effect,) = effects["suites"]
    for kind in ("predicted", "without", "control"):
        assert suites["refusal"][kind] == pytest.approx(effect[kind], abs=1e-3)
        assert told["loss"][kind] == pytest.approx(effects["loss"][kind], abs=1e-3)


def test_the_command_prints_a_table(run):
    shown = CliRunner().invoke(app, ["whatif", "called", "--without", "3,7", "--root", run.root, "--json"])
    assert shown.exit_code == 0, shown.output
    assert "without rows 3, 7" in shown.output and "held-out loss" in shown.output
    assert json.loads(shown.output.splitlines()[-1])["rows"] == [3, 7]


@pytest.mark.parametrize(
    ("rows", "suites", "said"),
    [
        ([900], [], "--without 900: run called has no such training row"),
        (list(range(18)), [], "--without: 18 of 18 rows leave nothing to train on"),
        (None, ["identity"], "--without-causes identity: run called did not watch it; it watched refusal"),
    ],
)
def test_what_cannot_be_left_out_is_one_line(run, rows, suites, said):
    with pytest.raises(BadInput) as fault:
        predicted_without(run, rows, suites, lambda *_: None)
    assert said in str(fault.value) and "\n" not in str(fault.value)
