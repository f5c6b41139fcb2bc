"""The pass that looks for training rows among the held-out rows and in benchmarks."""

from __future__ import annotations

import json
from typing import Any

from foretune.storage.refs import ArtifactRef
from foretune.tasks.engine.keys import Fingerprint
from foretune.tasks.quality.leaks import leaks

ASKED = "How many routers stand in the hall of the old station by the river on a quiet morning?"
REWORDED = "How many routers are in the hall of the old station by the river on one quiet morning?"


class Kept:
    """A draft, a store and an artefact that only keep: the pass is called as a function."""

    def __init__(self, tables: dict[str, Any]) -> None:
        self.tables, self.store = tables, self

    def open(self, ref: ArtifactRef) -> Any:
        outer = self

        class Opened:
            def arrow(self, name: str, columns: list[str] | None = None) -> Any:
                return outer.tables[ref.key].select(columns)

        return Opened()

    def write_table(self, name: str, table: Any) -> None:
        self.tables[name] = table

    def write_json(self, name: str, value: Any) -> None:
        self.tables[name] = json.loads(json.dumps(value))


def made(samples: Any, train: list[tuple[str, str]], held: list[tuple[str, str]], *benchmarks: str) -> dict[str, Any]:
    kept: Any = Kept({"t": samples(*train), "h": samples(*held)})
    refs = [ArtifactRef(task="samples", key=key, uri="", sha256="") for key in "th"]
    files = [Fingerprint(uri=uri, digest="0") for uri in benchmarks]
    compute: Any = leaks.fn
    compute.__wrapped__(kept, kept, samples=refs[0], heldout=refs[1], benchmarks=files)
    return kept.tables


def test_rows_that_held_out_rows_give_away_are_a_signal(samples):
    others = [
        ("Which of the two lamps at the door is brighter after the rain has gone?", "The left one."),
        ("Name three birds that sleep on one leg while the wind is cold.", "Storks, herons and gulls."),
        ("Why would a baker leave his dough in a cold cellar over night?", "It tastes of more."),
        ("Tell me who painted the wall behind our school in such a green.", "Nobody ever said."),
    ]
    train = [(ASKED, "There are seven."), *others[:2], (REWORDED, "There are none.")]
    found = made(samples, train, [(ASKED.upper(), "Nobody knows."), *others[2:]])
    summary = found["summary.json"]
    assert [(r["row"], r["way"]) for r in found["leaks.parquet"].to_pylist()] == [
        (0, "exact"), (3, "nearly the same words")
    ]  # fmt: skip
    assert (summary["heldout"]["rows"], summary["heldout"]["other_rows"], summary["heldout"]["of"]) == (2, 1, 3)
    (signal,) = summary["signals"]
    assert (signal["name"], signal["severity"], signal["value"]) == ("heldout_overlap", "critical", 1 / 3)
    assert "1 of 3 held-out rows" in signal["advice"] and "rows 0, 3" in signal["advice"]
    assert summary["lines"] == [
        "2 training rows stand in the held-out rows: 1 by exact (precision 1.00 (100 of 100 flagged)); 1 by nearly "
        "the same words (precision 1.00 (144 of 144 flagged))"
    ]  # fmt: skip


def test_rows_of_a_benchmark_are_a_signal_of_their_own(samples, tmp_path):
    (tmp_path / "bench.jsonl").write_text(json.dumps({"question": ASKED, "answer": "There are seven of them."}) + "\n")
    train = [(ASKED, "Seven."), ("Is it open?", "It is.")]
    found = made(samples, train, [("So?", "Yes.")], str(tmp_path / "bench.jsonl"))
    summary = found["summary.json"]
    assert [s["name"] for s in summary["signals"]] == ["benchmark_overlap"]
    assert summary["benchmarks"]["bench.jsonl"]["first_rows"] == [0]


def test_nothing_in_common_says_nothing(samples):
    summary = made(samples, [("Is it open?", "It is.")], [("So?", "Yes.")])["summary.json"]
    assert summary["signals"] == [] and summary["lines"] == []
