"""The memory that a simulation takes beside a step of the training it stands for, pass by pass.

`make bench-memory` trains two steps per adapter, runs every pass of its simulation one after the other, and then
`foretune simulate` as a user does, each in a process of its own, and writes results/memory.json: a row per adapter.
Memory hardly depends on what else a machine does: largest resident sizes of processes, libraries included.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks.environment import environment, with_earlier, write_results
from tests.benchmarks.paired_runs import process
from tests.benchmarks.real_runs import ALL_LINEAR, BANK, FULL, Q_AND_V, Case

ADAPTERS = {
    "q,v r=8": (Q_AND_V, 2e-4),
    "all-linear r=16": (ALL_LINEAR, 2e-4),
    "full": (FULL, 1e-5),
}
ROWS, BATCH = 24, 8
STEPS = 2
KEPT = BANK / "memory"
FEW = {
    "behaviour": {"items": 8, "path": {"items": 3, "points": 1, "orders": 1, "nulls": 1}},
    "answers": {"rows": 4, "max_new_tokens": 24},
    "concept_causes": {"features": 3},
}
"""Fewer items and answers than usual: micro-batches are as full, there are fewer of them."""


def written(adapter: str) -> Path:
    """The folder of an adapter's request and rows."""
    settings, rate = ADAPTERS[adapter]
    training = {"learning_rate": rate, "epochs": 1}
    case = Case("gsm8k", "memory", adapter, rows=ROWS, adapter=settings, training=training)
    folder = KEPT / case.name
    folder.mkdir(parents=True, exist_ok=True)
    content = case.request(folder, str(folder / "root")) | FEW
    (folder / "request.yaml").write_text(yaml.safe_dump(content))
    return folder


def steps(folder: Path) -> None:
    """Two steps of the training, in this process: one copy of the model, transformers' Trainer, peft's LoRA."""
    from peft import get_peft_model
    from transformers import Trainer, TrainingArguments

    from foretune.storage.runs import Run
    from foretune.tasks.backtest.real_run import trainer_arguments
    from foretune.tasks.loading import lora_config
    from foretune.tasks.numerics.batches import collate
    from foretune.tasks.samples.dataset import read_table

    wiring = wired(folder)
    request, run = wiring.request, Run(wiring.request.runtime.root, "memory")
    table = read_table(run, wiring.tables["train"]).select(["input_ids", "loss_mask"]).to_pylist()
    rows = sorted(table, key=lambda row: -len(row["input_ids"]))[:BATCH] * STEPS  # the longest together

    def collated(chosen: list[dict[str, Any]]) -> dict[str, Any]:
        masked = [
            [token if kept else -100 for token, kept in zip(row["input_ids"], row["loss_mask"], strict=True)]
            for row in chosen
        ]
        batch = collate([(row["input_ids"], labels) for row, labels in zip(chosen, masked, strict=True)])
        return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": batch.labels}

    model: Any = wiring.model.open(run).model
    model.requires_grad_(True)
    if request.adapter.method == "lora":
        model = get_peft_model(model, lora_config(request.adapter))
    arguments = TrainingArguments(**trainer_arguments(request.training, 1, str(folder)) | {"max_steps": STEPS})
    Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collated).train()  # pyright: ignore[reportArgumentType]


def passes(folder: Path) -> None:
    """Every pass of the simulation, one after the other in this process; passes.json: the largest size of each task."""
    from foretune.flows.dag.simulation import simulation

    wiring = wired(folder)
    simulation(wiring)
    (folder / "passes.json").write_text(json.dumps(wiring.step.peaks))


def wired(folder: Path) -> Any:
    """The request's wiring, whose steps are called, and tell the largest size of the process meanwhile."""
    from dataclasses import dataclass, field

    from foretune.flows.dag.wiring import Wiring
    from foretune.flows.request import load_request
    from foretune.storage.runs import Run
    from foretune.tasks.inputs.sources import resolve_sources
    from tests.dag import Called

    @dataclass
    class Measured(Called):
        peaks: dict[str, int] = field(default_factory=dict)

        def __call__(self, task: Any, **inputs: Any) -> Any:
            Path("/proc/self/clear_refs").write_text("5")  # the largest size starts again from what is held now
            made = super().__call__(task, **inputs)
            if not made.cached:
                self.peaks[made.task] = max(self.peaks.get(made.task, 0), largest_mb())
            return made

    request = load_request(str(folder / "request.yaml"), [])
    sources = resolve_sources(request.dataset, request.model, request.sae)
    return Wiring(Measured(Run(request.runtime.root, "memory")), request, sources)


def largest_mb() -> int:
    """The largest resident size of this process, MiB, since it was last cleared."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) // 1024


def row(adapter: str) -> dict[str, Any]:
    """One adapter: megabytes of a step, of the whole simulation, and of its largest passes."""
    folder = written(adapter)
    for stored in ("root", "simulated"):  # what is stored would not be measured
        shutil.rmtree(folder / stored, ignore_errors=True)
    words = [sys.executable, "-m", "tests.benchmarks.memory", "--folder", str(folder)]
    process([*words, "--part", "prepare"])  # the model is converted by neither
    step = process([*words, "--part", "steps"])["peak_mb"]
    process([*words, "--part", "passes"])
    largest = json.loads((folder / "passes.json").read_text())
    simulate = [str(Path(sys.executable).with_name("foretune")), "simulate", str(folder / "request.yaml")]
    whole = process([*simulate, "--root", str(folder / "simulated")])["peak_mb"]
    return {
        "adapter": adapter,
        "step_mb": step,
        "simulation_mb": whole,
        "ratio": round(whole / step, 2),
        "largest_pass_ratio": round(max(largest.values()) / step, 2),
        "passes_mb": dict(sorted(largest.items(), key=lambda each: -each[1])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapter", choices=list(ADAPTERS), action="append", help="these alone")
    parser.add_argument("--folder", type=Path, help="of one part, which runs in this process")
    parser.add_argument("--part", choices=["prepare", "steps", "passes"])
    chosen = parser.parse_args()
    if chosen.part:
        {"prepare": wired, "steps": steps, "passes": passes}[chosen.part](chosen.folder)
        return
    started, rows = environment(), []
    for adapter in chosen.adapter or ADAPTERS:
        rows.append(row(adapter))
        print(rows[-1], flush=True)
        write_results("memory", with_earlier("memory", rows, ("adapter",)), started)


if __name__ == "__main__":
    main()
