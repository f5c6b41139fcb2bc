"""The versions of a name, from the ledger and its runs: nothing is written but the page of the newest one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from foretune.flows.commands.terminal import Terminal
from foretune.flows.commands.versions import print_versions, versions_of
from foretune.storage.errors import BadInput
from foretune.storage.ledger import Ledger
from foretune.storage.runs import Run
from tests.flows.test_command_line import foretune

LOSSES = (3.5, 3.4, 3.6)
IDS = (["a", "b", "b", "c"], ["a", "b", "d"], ["a", "b", "d"])


@pytest.fixture
def root(tmp_path: Path) -> str:
    """Three finished runs of `tickets`, the second accepted, and one that never ended."""
    import pyarrow as pa

    place = str(tmp_path / "root")
    for number, (loss, ids) in enumerate(zip(LOSSES, IDS, strict=True), start=1):
        run = Run(place, f"2026010{number}-020000-tickets-000{number}")
        run.write_request("dataset: {}\n")
        with run.store.create("samples", f"{number}" * 40, version=1, inputs={}, libraries={}) as draft:
            draft.write_table("samples.parquet", pa.table({"sample_id": ids}))
        ref = draft.ref
        summary = {
            "rows": len(ids),
            "heldout_loss_base": 4.0,
            "heldout_loss_predicted": loss - 0.1,
            "heldout_loss_evaluated": loss,
            "flagged_rows": number,
        }
        run.write_result(
            {
                "status": "completed",
                "request": {"dataset": {"path": f"v{number}.jsonl"}},
                "artifacts": {"samples": {"uri": ref.uri, "sha256": ref.sha256}},
                "signals": [{"name": "duplicate_rows", "severity": "warn"}] if number == 3 else [],
                "summary": summary,
            }
        )
        if number == 2:
            Ledger(place, "tickets").accept({"run_id": run.run_id, "summary": summary})
    Run(place, "20260104-020000-tickets-0004").write_request("dataset: {}\n")
    verdict = {"dataset": "v3.jsonl", "run_id": "20260103-020000-tickets-0003", "accepted": False, "comparison": None}
    Ledger(place, "tickets").keep("k", {**verdict, "verdict": "fail", "crossings": [], "skipped": [], "time": "2026"})
    return place


def test_versions_stand_in_their_order_with_rows_and_deltas(root):
    first, second, third = versions_of(root, "tickets", 10)["versions"]
    assert [v["heldout_loss_evaluated"] for v in (first, second, third)] == list(LOSSES)
    assert first["rows_kept"] is None
    assert (second["rows_added"], second["rows_removed"], second["rows_kept"]) == (1, 2, 2)
    assert (third["rows_added"], third["rows_removed"], third["rows_kept"]) == (0, 0, 3)
    assert second["accepted"] and not third["accepted"]
    assert third["verdict"] == "fail" and third["signals"] == ["duplicate_rows"]
    assert third["against_accepted"]["heldout_loss_evaluated"] == pytest.approx(0.2)


def test_the_first_shown_is_compared_with_the_one_before_it(root):
    (third,) = versions_of(root, "tickets", 1)["versions"]
    assert third["rows_kept"] == 3


def test_reading_writes_nothing_and_a_name_without_runs_is_one_line(root):
    before = sorted(Path(root).rglob("*"))
    versions_of(root, "tickets", 10)
    with pytest.raises(BadInput, match="history 'none': no finished run of this name under .*; it has tickets"):
        versions_of(root, "none", 10)
    assert sorted(Path(root).rglob("*")) == before


def test_the_command_prints_a_version_a_line_and_keeps_a_page(root):
    done = foretune("history", "tickets", "--root", root, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["versions"]) == 3 and found["accepted"] == "20260102-020000-tickets-0002"
    page = (Run(root, "20260103-020000-tickets-0003").place / "history.html").read_bytes().decode()
    assert 'data-chart="versions"' in page and "duplicate_rows" in page and "+0.2" in page


def test_the_terminal_says_what_changed(root, capsys):
    print_versions(Terminal(width=200), versions_of(root, "tickets", 10) | {"page": None})
    said = capsys.readouterr().out
    assert "(1 added, 2 removed, 2 kept)" in said
    assert "20260103-020000-tickets-0003  fail" in said
    assert "against the accepted 20260102-020000-tickets-0002" in said and "evaluated +0.2" in said
