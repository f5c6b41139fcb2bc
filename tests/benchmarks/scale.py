"""What a simulation costs beside the training it stands for, at the sizes people train, and how near it comes.

`make bench-scale` takes each case's real run (a process of its own; the bank keeps it), then `foretune simulate` with
each budget (a process too), and writes results/scale.json: a row per case and budget. Seconds are of whole processes.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import resource
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks.environment import environment, with_earlier, write_results
from tests.benchmarks.public_data import data_folder
from tests.benchmarks.real_runs import ALL_LINEAR, BANK, MODEL, Q_AND_V, RERUN, SAE

HELD_OUT = 64  # rows
LONGEST = 200  # characters of a prompt and its answer together
WARM_UP = 0.03  # of the steps
KEPT = BANK / "scale"


@dataclass(frozen=True)
class Case:
    """One training and its request."""

    rows: int
    epochs: int
    adapter_name: str = "q,v r=8"
    adapter: dict[str, Any] = field(default_factory=lambda: dict(Q_AND_V))

    @property
    def name(self) -> str:
        return f"{self.rows}x{self.epochs}-{self.adapter_name.replace(' ', '_').replace(',', '')}"

    @property
    def folder(self) -> Path:
        return KEPT / self.name

    def request(self) -> Path:
        """The request's file, beside its rows."""
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = turns(self.rows + HELD_OUT)
        for role, part in (("heldout", rows[:HELD_OUT]), ("train", rows[HELD_OUT:])):
            (self.folder / f"{role}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
        content = {
            "name": self.name.replace("=", "").replace("_", "-"),
            "dataset": {
                "path": str(self.folder / "train.jsonl"),
                "heldout": {"path": str(self.folder / "heldout.jsonl")},
                "max_length": 96,
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
        path = self.folder / "request.yaml"
        path.write_text(yaml.safe_dump(content))
        return path


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
    listed = sorted(found)
    random.Random(1).shuffle(listed)
    if len(listed) < count:
        raise SystemExit(f"{len(listed)} single turns, {count} asked for")
    return [{"prompt": asked, "completion": answered} for asked, answered in listed[:count]]


def train(case: Case, order: int | None) -> None:
    """The real run, in this process: its delta and what it cost."""
    from safetensors.torch import save_file

    from foretune.flows.dag.wiring import Wiring
    from foretune.flows.request import load_request
    from foretune.storage.runs import Run
    from foretune.tasks.backtest.real_run import train as really
    from foretune.tasks.inputs.sources import resolve_sources
    from foretune.tasks.samples.dataset import read_table
    from tests.dag import Called

    started, before = time.perf_counter(), time.process_time()
    root = str(case.folder / "real_root")
    request = load_request(str(case.request()), [f"runtime.root={root}"])
    run = Run(root, "real")
    wiring = Wiring(Called(run), request, resolve_sources(request.dataset, request.model, None))
    table, loaded = read_table(run, wiring.tables["train"]), wiring.model.open(run)
    real = really(loaded, table, request.adapter, request.training, None, folder=case.folder, seed=order)
    save_file({name: d.contiguous() for name, d in real.delta.items()}, truth(case, order).with_suffix(".safetensors"))
    record = {
        "steps": real.steps,
        "rows": real.rows,
        "tokens": sum(len(ids) for ids in table["input_ids"].to_pylist()),
        "losses": real.losses,
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - before, 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    truth(case, order).write_text(json.dumps(record))
    print(case.name, order, {k: v for k, v in record.items() if k != "losses"}, flush=True)


def truth(case: Case, order: int | None = None) -> Path:
    """The record of a real run."""
    return case.folder / ("real.json" if order is None else f"real-order{order}.json")


def process(words: list[str]) -> dict[str, Any]:
    """A command as a process: its seconds, processor time and largest memory."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    said, _ = done.communicate()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 3):
        raise SystemExit(f"{' '.join(words)}: status {done.returncode}")
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(spent, 1),
        "peak_mb": round(after.ru_maxrss / 1024),
        "said": said,
    }


def simulated(case: Case, share: float | None) -> dict[str, Any]:
    """`foretune simulate` as a process, on a root of its own: what it cost and what it predicted, as a row.

    Suites, answers and circuits are left as the request's defaults have them: what a user pays for is measured.
    """
    name = "exhaustive" if share is None else f"{share:g}"
    root = case.folder / f"root-{name}"
    words = [str(Path(sys.executable).with_name("foretune")), "simulate", str(case.request()), "--root", str(root)]
    words += ["--json", *([] if share is None else ["--set", f"effort.budget={share:g}"])]
    kept = case.folder / f"simulated-{name}.json"
    if not kept.exists():
        took = process(words)
        result = json.loads(took.pop("said").splitlines()[-1])
        kept.write_text(json.dumps(took | {"run_id": result["run_id"], "cost": result["cost"]}))
    took = json.loads(kept.read_text())
    stored = sum(file.stat().st_size for file in root.rglob("*") if file.is_file())
    return took | {"root": str(root), "bytes": stored, "budget": share}


def row(case: Case, budget: float | None) -> dict[str, Any]:
    """One case and budget beside its real run."""
    from safetensors.torch import load_file

    from foretune.storage.results import artifact_of
    from foretune.storage.runs import Run
    from foretune.tasks.numerics.agreement import cosine, module_spearman, norm_ratio, share

    real = json.loads(truth(case).read_text())
    took = simulated(case, budget)
    run = Run(took["root"], took["run_id"])
    prediction = run.store.open(artifact_of(run, "prediction"))
    summary, delta = prediction.json("summary.json"), prediction.tensors("delta.safetensors")
    trained = load_file(truth(case).with_suffix(".safetensors"))
    base, losses = summary["heldout_loss_base"], heldout_losses(case, run, trained)
    again = truth(case, 1 + RERUN).with_suffix(".safetensors")
    spent = round(took["cost"]["forward_passes"], 2)
    return {
        "rows": case.rows,
        "epochs": case.epochs,
        "adapter": case.adapter_name,
        "budget": budget,
        "effort": "exhaustive" if budget is None else f"budget {budget:g}",
        "method": "foretune",
        "cosine": round(float(cosine(delta, trained)), 4),
        "norm_ratio": round(float(norm_ratio(delta, trained)), 4),
        "share": round(float(share(base, summary["heldout_loss_evaluated"], losses)), 4),
        "module_spearman": round(float(module_spearman(delta, trained)), 4),
        "rerun_cosine": round(float(cosine(load_file(again), trained)), 4) if again.exists() else None,
        "seconds_simulated": took["seconds"],
        "seconds_real": real["seconds"],
        "cpu_seconds_simulated": took["cpu_seconds"],
        "cpu_seconds_real": real["cpu_seconds"],
        "cpu_ratio": round(took["cpu_seconds"] / real["cpu_seconds"], 3),
        "forward_equivalents_simulated": spent,
        "forward_equivalents_real": 3 * case.epochs,
        "gradient_samples": summary["gradient_samples_used"],
        "peak_mb": took["peak_mb"],
        "peak_mb_training": real["peak_mb"],
        "bytes": took["bytes"],
    }


def heldout_losses(case: Case, run: Any, trained: dict[str, Any]) -> float:
    """Held-out loss at the trained weights, on the rows that the prediction evaluates."""
    from foretune.flows.dag.wiring import Wiring
    from foretune.flows.request import load_request
    from foretune.tasks.inputs.sources import resolve_sources
    from foretune.tasks.prediction.evaluation import rows_at_weights
    from tests.dag import Called

    request = load_request(str(case.request()), [f"runtime.root={run.root}"])
    wiring = Wiring(Called(run), request, resolve_sources(request.dataset, request.model, None))
    seed, most = request.training.seed, request.prediction.batch_tokens
    return rows_at_weights(run, wiring.model, wiring.evaluation_rows(), request.adapter, seed, None, most).loss(trained)


CASES = [
    Case(1000, 3),
    Case(4000, 1),
    Case(4000, 3),
    Case(1000, 3, "all-linear r=16", ALL_LINEAR),
]
BUDGETS: tuple[float | None, ...] = (0.15, 0.33, 0.66, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", help="name of a case: its real run alone")
    parser.add_argument("--again", action="store_true", help="in another order of the rows")
    parser.add_argument("--case", default="", help="a part of a case's name")
    parser.add_argument("--budget", type=float, action="append", help="these alone; 0: exhaustive")
    chosen = parser.parse_args()
    named = {case.name: case for case in CASES}
    if chosen.train:
        train(named[chosen.train], 1 + RERUN if chosen.again else None)
        return
    started = environment()
    rows: list[dict[str, Any]] = []
    for case in (each for each in CASES if chosen.case in each.name):
        if not truth(case).exists():
            subprocess.run([sys.executable, "-m", "tests.benchmarks.scale", "--train", case.name], check=True)
        for budget in [each or None for each in chosen.budget] if chosen.budget else BUDGETS:
            rows.append(row(case, budget))
            print(rows[-1], flush=True)
            write_results("scale", with_earlier("scale", rows, ("rows", "epochs", "adapter", "effort")), started)


if __name__ == "__main__":
    main()
