"""A bank of real retrainings for influence scores: random halves and leave-8-out groups, with every held-out loss.

`python -m tests.benchmarks.retraining` trains what the bank lacks. One row per subset in results/:
kind (half | leave8), the positions kept, and the held-out loss of every query after training on them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from tests.benchmarks.real_runs import BANK, HELD_OUT, MAX_LENGTH, MODEL, Q_AND_V, read_pairs

RETRAINED = Path(__file__).with_name("results")  # committed: 50 real runs are an hour of this machine
ROWS = 64
HALVES, GROUPS, LEFT_OUT = 40, 10, 8
TRAINING = {"learning_rate": 5e-4, "epochs": 2, "batch_size": 8, "seed": 1}
NOISE = 0.1  # share of rows that answer another row's question in the second table


class Bank:
    """One data set's request, rows, and stored retrainings."""

    def __init__(
        self,
        data: str,
        folder: Path,
        rows: int = ROWS,
        swapped: bool = False,
        root: str = str(BANK / "root"),
        overrides: Sequence[str] = (),
    ) -> None:
        from foretune.flows.dag.wiring import Wiring
        from foretune.flows.request import load_request
        from foretune.storage.runs import Run
        from foretune.tasks.inputs.sources import resolve_sources
        from foretune.tasks.samples.dataset import read_table
        from tests.dag import Called

        self.data, self.folder = data, folder
        pairs = read_pairs(data, rows + HELD_OUT)
        queries, pairs = pairs[:HELD_OUT], pairs[HELD_OUT:]
        self.swapped = swap_answers(pairs) if swapped else []
        path = write_request(folder, queries, pairs, root)
        self.request = load_request(str(path), list(overrides))
        self.run = Run(self.request.runtime.root, "retraining")
        sources = resolve_sources(self.request.dataset, self.request.model, None)
        self.wiring = Wiring(Called(self.run), self.request, sources)
        self.train, self.heldout = (read_table(self.run, self.wiring.tables[role]) for role in ("train", "heldout"))
        self.loaded = self.wiring.model.open(self.run)

    @property
    def path(self) -> Path:
        return RETRAINED / f"retraining-{self.data}.parquet"

    def stored(self) -> list[dict[str, Any]]:
        """Subsets that are trained already, in the order of `subsets`."""
        return pq.read_table(self.path).to_pylist() if self.path.exists() else []

    def subsets(self) -> list[tuple[str, list[int]]]:
        """Kind and kept positions of every subset."""
        generator = torch.Generator().manual_seed(0)
        orders = [torch.randperm(len(self.train), generator=generator).tolist() for _ in range(HALVES + GROUPS)]
        halves = [("half", sorted(order[: len(order) // 2])) for order in orders[:HALVES]]
        return halves + [("leave8", sorted(order[LEFT_OUT:])) for order in orders[HALVES:]]

    def retrain(self, kept: list[int]) -> list[float]:
        """`losses_after` the kept rows."""
        return losses_after(kept, self.request, self.loaded, self.train, self.heldout, self.folder / "trainer")


def losses_after(
    kept: list[int], request: Any, loaded: Any, rows: pa.Table, heldout: pa.Table, folder: Path
) -> list[float]:
    """Loss of every held-out row, nats per label token, after the request's training on the kept ones of `rows`."""
    from foretune.tasks.backtest.real_run import train
    from foretune.tasks.inputs.adapted import adapt

    real = train(loaded, rows, request.adapter, request.training, None, folder=folder, rows=kept)
    return query_losses(adapt(loaded, request.adapter, request.training.seed), heldout, real.delta)


def query_losses(adapted: Any, table: pa.Table, delta: dict[str, Any]) -> list[float]:
    """Loss of every row at the base weights plus delta, nats per label token."""
    from foretune.tasks.numerics.losses import sample_losses
    from foretune.tasks.samples.minibatches import minibatches

    weights = adapted.weights | {name: adapted.weights[name] + change for name, change in delta.items()}
    losses = [0.0] * len(table)
    with torch.no_grad():
        for minibatch in minibatches(table, 1024):
            found = sample_losses(adapted.call(weights, minibatch.batch), minibatch.batch.labels)
            for row, loss_sum, tokens in zip(minibatch.rows, found.loss_sum, found.tokens, strict=True):
                losses[row] = float(loss_sum / tokens)
    return losses


def swap_answers(pairs: list[dict[str, str]]) -> list[str]:
    """Let a tenth of the rows answer each other's questions, in place; the prompts of these rows."""
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(pairs), generator=generator).tolist()[: max(2, round(NOISE * len(pairs)))]
    answers = [pairs[row]["completion"] for row in chosen]
    for row, answer in zip(chosen, answers[1:] + answers[:1], strict=True):
        pairs[row] = {**pairs[row], "completion": answer}
    return [pairs[row]["prompt"] for row in chosen]


def write_request(folder: Path, queries: list[dict[str, str]], pairs: list[dict[str, str]], root: str) -> Path:
    """request.yaml with its two files of rows."""
    for role, part in (("heldout", queries), ("train", pairs)):
        (folder / f"{role}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    heldout = {"path": str(folder / "heldout.jsonl")}
    request = {
        "name": "retraining",
        "dataset": {"path": str(folder / "train.jsonl"), "heldout": heldout, "max_length": MAX_LENGTH},
        "model": {"name_or_path": MODEL},
        "adapter": Q_AND_V,
        "training": TRAINING,
        "runtime": {"root": root},
    }
    path = folder / "request.yaml"
    path.write_text(yaml.safe_dump(request))
    return path


def build(data: str) -> None:
    """Train every subset that is not stored; the file is written again after each."""
    with tempfile.TemporaryDirectory() as name:
        bank = Bank(data, Path(name))
        rows = bank.stored()
        for kind, kept in bank.subsets()[len(rows) :]:
            rows.append({"kind": kind, "kept": kept, "losses": bank.retrain(kept)})
            pq.write_table(pa.Table.from_pylist(rows), bank.path)
            print(data, len(rows), kind, round(sum(rows[-1]["losses"]) / HELD_OUT, 4), flush=True)


if __name__ == "__main__":
    for each in ("self_instruct", "gsm8k"):
        build(each)
