"""What a reader is told to do, on a stored run: the rows that go, how long is left, and what one copies stays whole."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from foretune.flows.cli import app
from foretune.flows.commands.answer import cost_in_words
from foretune.flows.commands.cleaned_rows import write_cleaned
from foretune.flows.commands.console import LivePasses
from foretune.flows.commands.remaining import Remaining
from foretune.flows.commands.terminal import Terminal
from foretune.storage.errors import BadInput
from foretune.storage.runs import Run
from foretune.tasks.report.charts.features import concept_changes
from foretune.tasks.report.concepts import joined_concepts, moved_concepts
from foretune.tasks.report.tables import concepts
from foretune.tasks.report.views import ConceptsView

ARCHIVE = next((Path(__file__).parents[1] / "archives").glob("*.tar.xz"))


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A finished run, in the folder that its request was given in."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return Run(str(tmp_path / "root"), next((tmp_path / "root" / "runs").iterdir()).name)


def test_dropping_everything_is_refused_and_writes_nothing(stored, tmp_path):
    with pytest.raises(BadInput, match="all 18 rows would be dropped; drop fewer, or say --force"):
        write_cleaned(stored, str(tmp_path / "none.jsonl"), 1000, [])
    assert not (tmp_path / "none.jsonl").exists()
    assert write_cleaned(stored, str(tmp_path / "none.jsonl"), 1000, [], force=True)["kept"] == []


def test_the_old_name_of_drop_worst_still_works_and_says_so_once(stored, tmp_path):
    words = ["clean", "latest", "--root", stored.root, "--json", "-o"]
    old = CliRunner().invoke(app, [*words, str(tmp_path / "old.jsonl"), "--drop-harmful", "2"])
    new = CliRunner().invoke(app, [*words, str(tmp_path / "new.jsonl"), "--drop-worst", "2"])
    assert old.exit_code == new.exit_code == 0
    assert old.stderr.count("--drop-harmful is now --drop-worst") == 1 and new.stderr == ""
    dropped = [json.loads(done.stdout.splitlines()[-1])["dropped"] for done in (old, new)]
    assert dropped[0] == dropped[1] and len(dropped[0]) == 2


def test_watching_a_run_that_computed_nothing_says_what_was_found(stored):
    result = stored.read_result() | {"tasks": {"run": 0, "cached": 78}}
    (Path(stored.root) / "runs" / stored.run_id / "result.json").write_text(json.dumps(result))
    out = io.StringIO()
    with LivePasses(stored, Terminal(width=80, file=out)) as live:
        live.until_finished()
    assert "nothing was computed: 78 found" in out.getvalue()


def test_what_is_left_is_counted_and_estimated():
    remaining = Remaining()
    assert remaining.words == ""
    keys = [f"k{n}" for n in range(4)]
    waiting = [{"key": key, "state": "run", "seconds": 120.0} for key in keys]
    found = [{"key": f"c{n}", "state": "cached", "seconds": None} for n in range(74)]
    remaining._ask(lambda: {"tasks": [*found, *waiting], "workers": 2})
    assert remaining.words == "74 of 78, about 4 min left"
    for key in keys[:3]:
        remaining.ended(key)
    assert remaining.words == "77 of 78, about 60 s left"
    remaining.ended(keys[3])
    assert remaining.words == "78 of 78"


def test_words_hang_and_none_is_broken():
    out = io.StringIO()
    Terminal(width=40, file=out).hanging("  1  ", "drop --drop-flagged harmful_content and read " + "x" * 60)
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("  1  drop") and all(line.startswith("     ") for line in lines[1:])
    assert "x" * 60 in lines[-1] and all(len(line) <= 40 for line in lines[:-1])


def test_the_cost_says_what_is_saved_or_not():
    cost = {"seconds": 331.0, "forward_passes": 4.5, "real_seconds": 211.0, "real_forward_passes": 9.0}
    assert cost_in_words(cost).endswith("and about 4 min on this machine: 4.5 forward passes saved")
    assert cost_in_words(cost | {"forward_passes": 20.0}).endswith("11 forward passes more than training")
    assert "no forward pass" in cost_in_words(cost | {"forward_passes": 0.0, "real_seconds": None})


def test_charts_and_tables_have_the_order_of_the_terminal():
    measured = pd.DataFrame(
        {
            "feature": range(6),
            "base": 1.0,
            "new": 1.0,
            "change": [0.1, -0.2, 0.3, -0.4, 0.5, 0.6],
            "z": [4.0, -4.0, 4.0, -4.0, 4.0, 1.0],
            "beyond_noise": [True, True, True, True, True, False],
            "error": 0.1,
            "fires_base": 0.1,
            "fires_new": 0.1,
        }
    )
    scored = pd.DataFrame(
        {
            "feature": range(6),
            "label": list("abcdef"),
            "base_act": 1.0,
            "score": [5.0, 4.0, -3.0, 2.0, -1.0, 9.0],
            "predicted_change": [0.5, 0.4, 0.3, -0.2, -0.1, 0.9],
            "dormant": False,
        }
    )
    rows = joined_concepts(scored.to_dict("records"), measured.to_dict("records"))
    up, down = moved_concepts(rows)
    wanted = [c["feature"] for c in [*up, *reversed(down)]]
    assert wanted == [4, 2, 0, 1, 3]
    told = {"label_source": "file", "confidence": None, "tested": 0, "verdict": "as measured"}
    table = concepts(ConceptsView(pd.DataFrame(rows).assign(**told)), 5)
    assert [row[1] for row in table.rows] == [*wanted, 5] and "5 concepts move beyond noise, of 6" in table.caption
    names = concept_changes(scored, measured, 5).figure.layout.yaxis.ticktext
    assert [int(name.rsplit("#", 1)[1]) for name in names] == wanted
