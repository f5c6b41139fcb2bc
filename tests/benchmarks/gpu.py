"""What a simulation costs beside its training on one GPU: one script for a bare machine, which fetches nothing.

`make bench-gpu` makes a model of about 1B parameters from a configuration (random weights, bytes as tokens), takes
SmolLM2-135M too where .models has it, trains both on recombined rows of the demo in bf16, simulates the same requests,
prints seconds, largest memory and agreement, and writes results/gpu.json. It starts nothing that would end after
--seconds, by what the parts before it took. `--size tiny` is the same in little, on any machine.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks.environment import environment, write_results
from tests.benchmarks.paired_runs import PairedRun
from tests.benchmarks.real_runs import MODEL
from tests.conftest import SHAPE, tiny_config, write_tokenizer

DEMO = Path("examples/demo/helpdesk.jsonl")
BILLION = {
    "vocab_size": 32_000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "initializer_range": 0.02,
}
TRAINING = {"learning_rate": 2e-4, "epochs": 3, "batch_size": 8, "lr_scheduler_type": "cosine", "seed": 1}
SIZES: dict[str, dict[str, Any]] = {
    "full": {"shape": BILLION, "rows": 512, "heldout": 32, "dtype": "bfloat16", "budgets": (0.33, None), "asked": {}},
    "tiny": {
        "shape": SHAPE,
        "rows": 24,
        "heldout": 8,
        "dtype": "float32",
        "budgets": (None,),
        "asked": {"behaviour": {"suites": []}, "answers": {"rows": 0}},
    },
}


def made_model(folder: Path, shape: dict[str, Any]) -> Path:
    """A Llama of this shape with seeded random weights, and a tokenizer of bytes."""
    import torch
    from transformers import LlamaForCausalLM

    folder.mkdir(parents=True)
    torch.manual_seed(0)
    LlamaForCausalLM(tiny_config("llama", **shape)).to(torch.bfloat16).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def recombined(count: int) -> list[dict[str, str]]:
    """Prompts and answers of the demo's rows in seeded pairs, each pair once."""
    rows = [json.loads(line) for line in DEMO.read_text(encoding="utf-8").splitlines()]
    pairs = sorted({(first["instruction"], second["output"]) for first in rows for second in rows})
    random.Random(0).shuffle(pairs)
    return [{"prompt": asked, "completion": answered} for asked, answered in pairs[:count]]


def paired(folder: Path, model: Path, size: dict[str, Any]) -> PairedRun:
    """The request of one model, and its rows."""
    folder.mkdir(parents=True)
    rows = recombined(size["rows"] + size["heldout"])
    for role, part in (("heldout", rows[: size["heldout"]]), ("train", rows[size["heldout"] :])):
        (folder / f"{role}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    content = {
        "name": "gpu",
        "dataset": {
            "path": str(folder / "train.jsonl"),
            "heldout": {"path": str(folder / "heldout.jsonl")},
            "max_length": 256,
        },
        "model": {"name_or_path": str(model), "dtype": size["dtype"]},
        "adapter": {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
        "training": TRAINING,
        **size["asked"],
    }
    run = PairedRun(folder)
    run.request.write_text(yaml.safe_dump(content))
    return run


def device() -> str:
    """What computes here."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--seconds", type=float, default=460, help="in all")
    parser.add_argument("--out", type=Path, help="where the rows go as JSON, beside results/gpu.json")
    chosen = parser.parse_args()
    size, started, began = SIZES[chosen.size], environment() | {"device": device()}, time.monotonic()
    rows: list[dict[str, Any]] = []
    longest = 0.0
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        models = {"llama, made": made_model(work / "model", size["shape"])}
        if chosen.size == "full" and Path(MODEL).exists():
            models["SmolLM2-135M"] = Path(MODEL).resolve()
        for model, folder in models.items():
            run = paired(work / model.replace(" ", "_"), folder, size)
            for budget in size["budgets"]:
                before = time.monotonic()
                if before - began + longest > chosen.seconds:
                    print(f"{model}, budget {budget}: left out, {chosen.seconds:g} s would be passed", flush=True)
                    continue
                rows.append({"model": model, "rows": size["rows"], "epochs": TRAINING["epochs"]} | run.row(budget))
                longest = max(longest, time.monotonic() - before)
                print(json.dumps(rows[-1]), flush=True)
                if chosen.size == "full":
                    write_results("gpu", rows, started)
                if chosen.out:
                    chosen.out.write_text(json.dumps({"environment": started, "rows": rows}))


if __name__ == "__main__":
    main()
