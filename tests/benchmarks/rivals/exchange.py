"""What every rival reads and writes: tokenised rows in, one tensor of scores and its cost out.

Nothing of foretune is imported: these scripts run in an environment of their own.
"""

from __future__ import annotations

import importlib.metadata
import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

IGNORED = -100  # label of a position where no loss is taken


@dataclass
class Exchange:
    """The command line `FOLDER METHOD OUT`, and the seconds spent so far."""

    folder: Path
    method: str
    out: Path
    setting: dict[str, Any]
    seconds: dict[str, float] = field(default_factory=dict)
    cpu_seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def from_arguments(cls, methods: tuple[str, ...]) -> Exchange:
        """Read the command line and the setting, and seed torch."""
        if len(sys.argv) != 4 or sys.argv[2] not in methods:
            sys.exit(f"usage: {Path(sys.argv[0]).name} FOLDER {'|'.join(methods)} OUT.safetensors")
        folder = Path(sys.argv[1]).resolve()
        setting = json.loads((folder / "setting.json").read_text())
        torch.manual_seed(setting["seed"])
        return cls(folder, sys.argv[2], Path(sys.argv[3]).resolve(), setting)

    @property
    def model(self) -> str:
        return str(self.folder / "model")

    def rows(self, role: str) -> list[dict[str, list[int]]]:
        """Rows of train.jsonl or heldout.jsonl: input_ids and labels, to be shifted by the loss."""
        lines = (self.folder / f"{role}.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the wall-clock and processor seconds of the block to `part`."""
        started, started_cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - started
            self.cpu_seconds[part] = self.cpu_seconds.get(part, 0.0) + time.process_time() - started_cpu

    def write(self, library: str, scores: torch.Tensor) -> None:
        """Scores [train, heldout], negative where training on the row lowers the held-out row's mean token loss."""
        if not torch.isfinite(scores).all():
            raise ValueError(f"{library} {self.method}: {int((~scores.isfinite()).sum())} scores are not finite")
        self.out.parent.mkdir(parents=True, exist_ok=True)
        save_file({"scores": scores.float().contiguous()}, self.out)
        spent = {
            f"{clock}_{part}": round(seconds[part] - seconds.get(loading, 0.0), 2)
            for clock, seconds in (("seconds", self.seconds), ("cpu_seconds", self.cpu_seconds))
            for part, loading in (("total", "loading"), ("scoring", "loading while scoring"))
        }
        record = {
            "method": self.method,
            "library": library,
            "version": importlib.metadata.version(library),
            **spent,
            "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),  # Linux counts in kB
            "threads": torch.get_num_threads(),
        }
        self.out.with_suffix(".json").write_text(json.dumps(record) + "\n")


def load_model(exchange: Exchange) -> torch.nn.Module:
    """The base model in float32, in evaluation mode."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(exchange.model, dtype=torch.float32).eval()


def target_names(model: torch.nn.Module, setting: dict[str, Any]) -> list[str]:
    """Full names of the linear layers whose last name is a target module, in the model's order."""
    targets = set(setting["target_modules"])
    return [name for name, _ in model.named_modules() if name.rpartition(".")[2] in targets]


def by_length(rows: list[dict[str, list[int]]]) -> list[int]:
    """Positions of the rows from the longest to the shortest, so that a batch has little padding."""
    return sorted(range(len(rows)), key=lambda row: (-len(rows[row]["input_ids"]), row))


def pad(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """One batch: input_ids, attention_mask and labels, each [rows, longest], padded on the right."""
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(values: list[int], filler: int) -> list[int]:
        return values + [filler] * (longest - len(values))

    return {
        "input_ids": torch.tensor([padded(row["input_ids"], 0) for row in rows]),
        "attention_mask": torch.tensor([padded([1] * len(row["input_ids"]), 0) for row in rows]),
        "labels": torch.tensor([padded(row["labels"], IGNORED) for row in rows]),
    }


def row_losses(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross-entropy of every row [rows], nats, and its number of label tokens [rows]."""
    shifted = labels[:, 1:]
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), shifted, ignore_index=IGNORED, reduction="none"
    )
    return losses.sum(dim=1), (shifted != IGNORED).sum(dim=1)
