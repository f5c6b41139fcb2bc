"""What a simulation costs beside the training it stands for, at the sizes people train, and how near it comes.

`make bench-scale` takes each case's real run (a process of its own; the bank keeps it), then `foretune simulate` with
each budget (a process too), and writes results/scale.json: a row per case and budget. Seconds are of whole processes.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks.caching import PROJECT
from tests.benchmarks.environment import environment, with_earlier, write_results
from tests.benchmarks.paired_runs import PairedRun
from tests.benchmarks.public_data import data_folder
from tests.benchmarks.real_runs import ALL_LINEAR, BANK, MODEL, Q_AND_V, RERUN, SAE

HELD_OUT = 64  # rows
LONGEST = 200  # characters of a turn and its answer together
LONGEST_MATHS = 500  # the same of a question with its solution
WARM_UP = 0.03  # of the steps
KEPT = BANK / "scale"
ORDER = 1 + RERUN  # of the rows, in a second training


@dataclass(frozen=True)
class Case:
    """One training and its request."""

    rows: int
    epochs: int
    adapter_name: str = "q,v r=8"
    adapter: dict[str, Any] = field(default_factory=lambda: dict(Q_AND_V))
    texts: str = "conversations"  # or maths, four times as long; or the demo, whose request it is
    max_length: int = 96

    @property
    def name(self) -> str:
        of = "" if self.texts == "conversations" else f"{self.texts}-"
        return f"{self.rows}x{self.epochs}-{of}{self.adapter_name.replace(' ', '_').replace(',', '')}"

    def paired(self) -> PairedRun:
        """Its request and rows, written."""
        folder = KEPT / self.name
        folder.mkdir(parents=True, exist_ok=True)
        run = PairedRun(folder)
        run.request.write_text(yaml.safe_dump(demo() if self.texts == "demo" else self._request(folder)))
        return run

    def _request(self, folder: Path) -> dict[str, Any]:
        rows = (turns if self.texts == "conversations" else questions)(self.rows + HELD_OUT)
        for role, part in (("heldout", rows[:HELD_OUT]), ("train", rows[HELD_OUT:])):
            (folder / f"{role}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
        return {
            "name": self.name.replace("=", "").replace("_", "-"),
            "dataset": {
                "path": str(folder / "train.jsonl"),
                "heldout": {"path": str(folder / "heldout.jsonl")},
                "max_length": self.max_length,
            },
            "model": {"name_or_path": MODEL},
            "sae": {"path": SAE},
            "adapter": self.adapter,
            "training": {
                "learning_rate": 2e-4,
                "epochs": self.epochs,
                "batch_size": 8,
                "lr_scheduler_type": "cosine",
                "warmup_ratio": WARM_UP,
                "seed": 1,
            },
        }


def demo() -> dict[str, Any]:
    """The demo's request, its files wherever it is run."""
    asked = yaml.safe_load((PROJECT / "examples/demo/request.yaml").read_text())
    data = asked["dataset"]
    for part, key in (
        *((data, name) for name in ("path", "preferences", "probes")),
        (data["heldout"], "path"),
        (asked["model"], "name_or_path"),
        (asked["sae"], "path"),
    ):
        part[key] = str(PROJECT / part[key])
    return asked


def turns(count: int) -> list[dict[str, str]]:
    """Question and answer of single turns of public conversations, none long, in a seeded order."""
    found = set()
    with gzip.open(data_folder() / "hh_rlhf_harmless_base_test.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            for text in json.loads(line).values():
                for turn in text.split("\n\nHuman: ")[1:]:
                    asked, _, answered = turn.partition("\n\nAssistant: ")
                    if asked.strip() and answered.strip() and len(asked) + len(answered) <= LONGEST:
                        found.add((asked.strip(), answered.strip()))
    return _drawn(found, count)


def questions(count: int) -> list[dict[str, str]]:
    """Public questions of school mathematics with their solutions, in a seeded order."""
    with (data_folder() / "gsm8k_test.jsonl").open(encoding="utf-8") as file:
        read = [json.loads(line) for line in file]
    found = {(row["question"], row["answer"]) for row in read}
    return _drawn({pair for pair in found if len("".join(pair)) <= LONGEST_MATHS}, count)


def _drawn(found: set[tuple[str, str]], count: int) -> list[dict[str, str]]:
    listed = sorted(found)
    random.Random(1).shuffle(listed)
    if len(listed) < count:
        raise SystemExit(f"{len(listed)} texts, {count} asked for")
    return [{"prompt": asked, "completion": answered} for asked, answered in listed[:count]]


CASES = [
    Case(1000, 3),
    Case(4000, 1),
    Case(4000, 3),
    Case(1000, 3, "all-linear r=16", ALL_LINEAR),
    Case(400, 3, texts="maths", max_length=288),
    Case(96, 3, texts="demo"),
]
BUDGETS: tuple[float | None, ...] = (0.15, 0.33, 0.66, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", default="", help="a part of a case's name")
    parser.add_argument("--budget", type=float, action="append", help="these alone; 0: exhaustive")
    parser.add_argument("--again", action="store_true", help="train in another order of the rows too, and compare")
    chosen = parser.parse_args()
    started = environment()
    rows: list[dict[str, Any]] = []
    for case in (each for each in CASES if chosen.case in each.name):
        run = case.paired()
        about = {"rows": case.rows, "epochs": case.epochs, "adapter": case.adapter_name, "texts": case.texts}
        if chosen.again:
            rows.append(about | run.rerun_row(ORDER))
        for budget in [each or None for each in chosen.budget] if chosen.budget else BUDGETS:
            rows.append(about | run.row(budget))
            print(rows[-1], flush=True)
            write_results("scale", with_earlier("scale", rows, ("rows", "epochs", "adapter", "effort")), started)


if __name__ == "__main__":
    main()
