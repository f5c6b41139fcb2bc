"""Which influence score foretells real retrainings, and which finds swapped answers: ours, simple rules, and rivals.

`make bench-influence` builds the bank of real retrainings where it is not stored (an hour), scores the same rows by
every method, each in a process of its own, and writes results/influence.json. Rivals run in the environment that
`make bench-rivals-venv` makes; without it their rows are left as they were.

LDS: mean over held-out rows of the rank correlation, over random halves, of the really retrained loss with the summed
scores of the rows kept; 95 % interval by resampling halves. Noise: a tenth of 128 GSM8K rows answer another's question;
the score against the mean held-out loss should rank them worst. `cpu_seconds_process` is the processor time of the
whole process, imports and opening the model included: unlike the other seconds it does not depend on what else runs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from foretune.tasks.numerics.agreement import datamodeling_score, spearman
from tests.benchmarks.environment import environment, with_earlier, write_results
from tests.benchmarks.influence_scores import EPOCH, METHODS
from tests.benchmarks.real_runs import BANK
from tests.benchmarks.retraining import LEFT_OUT, ROWS, Bank, build

PROJECT = Path(__file__).parents[2]
RIVALS = {
    "kronfluence": ("ekfac", "ekfac_damped", "identity"),
    "bergson": ("ekfac", "trackstar"),
    "dattri": ("logra", "logra_identity"),
}
NOISE_DATA, NOISE_ROWS = "gsm8k", 128  # as many self-instruct rows of this length there are not
COSTS = ("seconds_total", "seconds_scoring", "cpu_seconds_process", "peak_mb", "threads")
SCORES = BANK / "influence_scores"


def exchange(data: str, rows: int, swapped: bool, folder: Path) -> Bank:
    """Write what rivals read: the model, tokens and labels of both roles, the setting."""
    bank = Bank(data, folder, rows, swapped)
    model = folder / "model"
    if not model.exists():
        model.symlink_to(bank.wiring.model.folder(bank.run).absolute())
    for role, table in (("train", bank.train), ("heldout", bank.heldout)):
        pairs = zip(table["input_ids"].to_pylist(), table["loss_mask"].to_pylist(), strict=True)
        lines = [
            json.dumps({"input_ids": ids, "labels": [t if kept else -100 for t, kept in zip(ids, mask, strict=True)]})
            for ids, mask in pairs
        ]
        (folder / f"{role}.jsonl").write_text("\n".join(lines) + "\n")
    training, adapter = bank.request.training, bank.request.adapter
    setting = {"target_modules": adapter.target_modules, "batch_size": training.batch_size, "seed": training.seed}
    (folder / "setting.json").write_text(json.dumps(setting | {"r": adapter.r, "lora_alpha": adapter.lora_alpha}))
    return bank


def score(library: str, method: str, data: str, rows: int, swapped: bool, folder: Path) -> dict[str, Any] | None:
    """Scores and cost of one method, from a process of its own; None for a rival that could not run."""
    out = SCORES / f"{data}-{rows}{'-swapped' if swapped else ''}-{library}-{method.replace(' ', '_')}.safetensors"
    out.parent.mkdir(parents=True, exist_ok=True)
    if not out.with_suffix(".json").exists():
        if library == "foretune":
            words = [sys.executable, "-m", "tests.benchmarks.influence_scores", data, str(rows)]
            words += ["swapped" if swapped else "clean", method, str(out)]
        else:
            script = f"tests/benchmarks/rivals/{library}_scores.py"
            words = [str(BANK / "rivals/bin/python"), script, str(folder), method, str(out)]
        model = {"FORETUNE_BENCH_MODEL": str((folder / "model").resolve())}
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(words, cwd=PROJECT, env=os.environ | model, capture_output=True, text=True)
        if done.returncode:
            print(f"{library} {method}: exit status {done.returncode}\n{done.stderr[-2000:]}", flush=True)
            return None
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        record = json.loads(out.with_suffix(".json").read_text()) | {"cpu_seconds_process": round(spent, 1)}
        out.with_suffix(".json").write_text(json.dumps(record))
    record = json.loads(out.with_suffix(".json").read_text())
    return record | ({} if method == EPOCH else {"scores": load_file(out)["scores"].double()})


def agreement(scores: torch.Tensor, retrained: list[dict[str, Any]]) -> dict[str, Any]:
    """LDS over the halves with its interval, the mean loss's correlation, and both over the groups left out."""
    figures: dict[str, Any] = {}
    for kind, prefix in (("half", ""), ("leave8", "leave8_")):
        chosen = [row for row in retrained if row["kind"] == kind]
        real = torch.tensor([row["losses"] for row in chosen], dtype=torch.float64)
        predicted = torch.stack([scores[row["kept"]].sum(0) for row in chosen])
        found = datamodeling_score(predicted, real)
        figures |= {f"{prefix}lds": round(found.score, 4)}
        if kind == "half":
            figures |= {"lds_low": round(found.low, 4), "lds_high": round(found.high, 4)}
        figures |= {f"{prefix}mean_loss_spearman": round(spearman(predicted.mean(1), real.mean(1)), 4)}
    return figures


def found_noise(scores: torch.Tensor, planted: torch.Tensor) -> dict[str, float]:
    """Share of the planted rows among the worst tenth and fifth, and the area under the curve."""
    harm = scores.mean(1)
    order = harm.argsort(descending=True)
    shares = {
        f"noise_worst{share}": round(float(planted[order[: round(len(harm) * share / 100)]].sum() / planted.sum()), 4)
        for share in (10, 20)
    }
    bad, good = harm[planted.bool()], harm[~planted.bool()]
    wins = (bad[:, None] > good).double() + 0.5 * (bad[:, None] == good).double()
    return shares | {"noise_auc": round(float(wins.mean()), 4)}


def planted_rows(bank: Bank) -> torch.Tensor:
    """[n] 1 where the row answers another row's question."""
    swapped = {prompt.strip() for prompt in bank.swapped}
    return torch.tensor([float(prompt.strip() in swapped) for prompt in bank.train["prompt"].to_pylist()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="self_instruct", choices=["self_instruct", "gsm8k"])
    parser.add_argument("--only", nargs="*", help="methods to measure; rows of the others are kept")
    parser.add_argument("--no-noise", action="store_true", help="leave the second table's columns out")
    chosen = parser.parse_args()
    started = environment()
    build(chosen.data)
    wanted = [("foretune", method) for method in METHODS]
    if (BANK / "rivals/bin/python").exists():
        wanted += [(library, method) for library, methods in RIVALS.items() for method in methods]
    with tempfile.TemporaryDirectory() as clean, tempfile.TemporaryDirectory() as noisy:
        bank = exchange(chosen.data, ROWS, False, Path(clean))
        planted = None if chosen.no_noise else planted_rows(exchange(NOISE_DATA, NOISE_ROWS, True, Path(noisy)))
        retrained = bank.stored()
        floor = score("foretune", EPOCH, chosen.data, ROWS, False, Path(clean)) or {}
        common = {"data": chosen.data, "queries": len(bank.heldout), "rows": ROWS, "left_out": LEFT_OUT}
        common |= {"subsets": len(retrained), "epoch_seconds": round(floor["seconds_total"], 2)}
        common |= {"step_peak_mb": floor["peak_mb"]}
        rows = []
        for library, method in wanted:
            if chosen.only and method not in chosen.only:
                continue
            found = score(library, method, chosen.data, ROWS, False, Path(clean))
            if found is None:
                continue
            row = {"method": method, "library": library, **common, **agreement(found.pop("scores"), retrained)}
            if planted is not None:
                noise = score(library, method, NOISE_DATA, NOISE_ROWS, True, Path(noisy))
                row |= found_noise(noise["scores"], planted) if noise else {}
            row |= {name: found[name] for name in COSTS}
            rows.append(row)
            print(row, flush=True)
            write_results("influence", with_earlier("influence", rows, ("data", "library", "method")), started)


if __name__ == "__main__":
    main()
