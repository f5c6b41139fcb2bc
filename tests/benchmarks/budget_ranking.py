"""Whether the ranking that a budget pays for foretells real retrainings on halves of the rows.

`make bench-ranking` trains 40 random halves of 256 rows for three epochs (the bank keeps each), simulates all 256 with
every budget, and writes results/budget_ranking.json, a row per budget. `mean_loss_spearman` is the rank correlation
over the halves of the mean held-out loss with the summed scores of the rows kept, measured and estimated ones; `lds`
the mean of the same over the held-out rows that are targets of their own, which measured rows alone have a score for.
Intervals by resampling halves.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from foretune.tasks.numerics.agreement import datamodeling_score
from tests.benchmarks.environment import environment, with_earlier, write_results
from tests.benchmarks.paired_runs import PairedRun
from tests.benchmarks.retraining import losses_after
from tests.benchmarks.scale import Case

ROWS, EPOCHS = 256, 3
HALVES = 40
BUDGETS: tuple[float | None, ...] = (0.2, 0.33, None)


class Halves:
    """The rows' random halves and what training on each of them comes to, kept in the bank."""

    def __init__(self, paired: PairedRun) -> None:
        from foretune.storage.runs import Run
        from foretune.tasks.samples.dataset import label_tokens, read_table

        self.paired = paired
        self._run = Run(str(paired.folder / "real_root"), "real")
        self._wiring = paired.wired(self._run)
        self.train, self.heldout = (read_table(self._run, self._wiring.tables[role]) for role in ("train", "heldout"))
        counts = label_tokens(self._run, self._wiring.tables["heldout"])
        self.tokens = torch.tensor([counts[i] for i in self.heldout["sample_id"].to_pylist()], dtype=torch.float64)

    @property
    def path(self) -> Path:
        return self.paired.folder / "halves.json"

    def stored(self) -> list[dict[str, Any]]:
        """Of every half trained so far the positions kept and the loss of every held-out row, in nats per token."""
        return json.loads(self.path.read_text()) if self.path.exists() else []

    def subsets(self) -> list[list[int]]:
        """Positions in the table of training rows."""
        generator = torch.Generator().manual_seed(0)
        orders = [torch.randperm(len(self.train), generator=generator).tolist() for _ in range(HALVES)]
        return [sorted(order[: len(order) // 2]) for order in orders]

    def build(self, most: int) -> None:
        """Train the first `most` halves where they are not stored."""
        found, request = self.stored(), self._wiring.request
        loaded, folder = self._wiring.model.open(self._run), self.paired.folder / "trainer"
        for kept in self.subsets()[len(found) : most]:
            losses = losses_after(kept, request, loaded, self.train, self.heldout, folder)
            found.append({"kept": kept, "losses": losses})
            self.path.write_text(json.dumps(found))
            print(len(found), flush=True)


def ranked(halves: Halves, budget: float | None) -> dict[str, Any]:
    """One budget's ranking beside the halves that are trained."""
    from foretune.storage.results import artifact_of
    from foretune.storage.runs import Run

    took, found = halves.paired.simulated(budget), halves.stored()
    run = Run(took["root"], took["run_id"])
    influence = run.store.open(artifact_of(run, "influence"))
    place = {sample_id: n for n, sample_id in enumerate(halves.train["sample_id"].to_pylist())}
    table = influence.arrow("influence.parquet").to_pylist()
    scores = torch.zeros(len(place), 1, dtype=torch.float64)
    for row in table:
        scores[place[row["sample_id"]], 0] = row["score"]
    losses = torch.tensor([half["losses"] for half in found], dtype=torch.float64)
    mean = (losses * halves.tokens).sum(1, keepdim=True) / halves.tokens.sum()
    overall = datamodeling_score(summed(scores, found), mean)
    numbers = halves.heldout["row"].to_pylist()
    targets = {t["name"]: numbers.index(t["row"]) for t in influence.json("targets.json") if t["kind"] == "row"}
    of_rows, names = torch.zeros(len(place), len(targets), dtype=torch.float64), list(targets)
    single_rows = influence.arrow("targets.parquet").to_pylist()
    for row in single_rows:
        if row["target"] in targets:
            of_rows[place[row["sample_id"]], names.index(row["target"])] = row["score"]
    single = datamodeling_score(summed(of_rows, found), losses[:, list(targets.values())])
    return {
        "effort": "exhaustive" if budget is None else f"budget {budget:g}",
        "rows": len(place),
        "measured_rows": len({row["sample_id"] for row in single_rows}),
        "halves": len(found),
        "mean_loss_spearman": round(overall.score, 4),
        "mean_loss_low": round(overall.low, 4),
        "mean_loss_high": round(overall.high, 4),
        "queries": len(targets),
        "lds": round(single.score, 4),
        "lds_low": round(single.low, 4),
        "lds_high": round(single.high, 4),
        "cpu_seconds_simulated": took["cpu_seconds"],
    }


def summed(scores: torch.Tensor, halves: list[dict[str, Any]]) -> torch.Tensor:
    """[halves, targets] of [rows, targets], over the rows kept."""
    return torch.stack([scores[half["kept"]].sum(0) for half in halves])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--halves", type=int, default=HALVES, help="train these many at most")
    parser.add_argument("--budget", type=float, action="append", help="these alone; 0: exhaustive")
    parser.add_argument("--train-only", action="store_true")
    chosen = parser.parse_args()
    started, rows = environment(), []
    halves = Halves(Case(ROWS, EPOCHS).paired())
    halves.build(chosen.halves)
    if chosen.train_only:
        return
    for budget in [each or None for each in chosen.budget] if chosen.budget else BUDGETS:
        rows.append(ranked(halves, budget))
        print(rows[-1], flush=True)
        write_results("budget_ranking", with_earlier("budget_ranking", rows, ("rows", "effort")), started)


if __name__ == "__main__":
    main()
