"""The bank of real fine-tunes that `prediction` is measured against: trained once, kept as safetensors.

`python -m tests.benchmarks.real_runs` trains what the bank does not hold yet. Every case is a request of its own
over public rows from FORETUNE_BENCH_DATA; the bank lies in FORETUNE_BENCH_BANK (default .bench/).
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks.intents import INTENTS

DATA = Path(os.environ.get("FORETUNE_BENCH_DATA", "../shared/data"))
BANK = Path(os.environ.get("FORETUNE_BENCH_BANK", ".bench"))
MODEL = os.environ.get("FORETUNE_BENCH_MODEL", ".models/SmolLM2-135M-Instruct.Q4_1.gguf")
SAE = "examples/demo/sae"
HELD_OUT = 24  # rows
MAX_LENGTH = 96  # tokens
RERUN = 1000  # added to the seed of the row order

Q_AND_V = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
ALL_LINEAR = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
FULL = {"method": "full"}
SHORT = {"learning_rate": 2e-4, "epochs": 3}  # 48 rows: 18 steps, rate x steps = 3.6e-3
ORDINARY = {"learning_rate": 3e-4, "epochs": 4}  # 96 rows: 48 steps
INTENDED = {"learning_rate": 5e-4, "epochs": 2}  # 96 rows: 24 steps, as far as an ordinary run
MILD = {"learning_rate": 5e-5, "epochs": 1}  # 96 rows: 12 steps, a twentieth as far
LONG = {"learning_rate": 2e-4, "epochs": 18}  # 96 rows: 216 steps


@dataclass(frozen=True)
class Case:
    """One real run, and the simulation that should have known it."""

    data: str  # self_instruct | gsm8k | one of another intent
    regime: str  # short | ordinary | long | intended | mild
    adapter_name: str = "q,v r=8"
    seed: int = 1
    rows: int = 48
    chat: bool = False  # rows as chat messages, all tokens trained; else the completion only
    adapter: dict[str, Any] = field(default_factory=lambda: dict(Q_AND_V))
    training: dict[str, Any] = field(default_factory=lambda: dict(SHORT))

    @property
    def name(self) -> str:
        adapter = self.adapter_name.replace(" ", "_").replace(",", "")
        return f"{self.data}-{self.regime}-{adapter}-seed{self.seed}"

    @property
    def told(self) -> str:
        """The data, and that little of it is learned."""
        return f"{self.data}, mild" if self.regime == "mild" else self.data

    def request(self, folder: Path, root: str, anchors: int | str = "auto") -> dict[str, Any]:
        """The request as YAML says it; its rows are written into `folder`."""
        rows = [chat_row(row) if self.chat else row for row in read_pairs(self.data, self.rows + HELD_OUT)]
        for role, part in (("train", rows[HELD_OUT:]), ("heldout", rows[:HELD_OUT])):
            (folder / f"{role}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
        return {
            "name": self.name.replace("=", ""),
            "dataset": {
                "path": str(folder / "train.jsonl"),
                "heldout": {"path": str(folder / "heldout.jsonl")},
                "max_length": MAX_LENGTH,
            },
            "model": {"name_or_path": MODEL},
            "sae": {"path": SAE},
            "adapter": self.adapter,
            "training": {"batch_size": 8, "seed": self.seed, **self.training},
            "prediction": {"anchors": anchors},
            "runtime": {"root": root},
        }


def read_pairs(data: str, count: int) -> list[dict[str, str]]:
    """The shortest question and answer rows, dealt round robin so that every part has short and long ones."""
    if data in INTENTS:
        return INTENTS[data](DATA)[:count]
    if data == "gsm8k":
        lines = (DATA / "gsm8k_test.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [{"prompt": row["question"], "completion": row["answer"]} for row in map(json.loads, lines)]
    else:
        lines = (DATA / "self_instruct_seed_tasks.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [_instance(row) for row in map(json.loads, lines)]
    rows = sorted(rows, key=lambda row: (len(row["prompt"] + row["completion"]), row["prompt"]))
    return [row for start in range(5) for row in rows[:count][start::5]]


def _instance(task: dict[str, Any]) -> dict[str, str]:
    first = task["instances"][0]
    prompt = f"{task['instruction']}\n{first['input']}" if first["input"] else task["instruction"]
    return {"prompt": prompt, "completion": first["output"]}


def chat_row(row: dict[str, str]) -> dict[str, Any]:
    """The same row as chat messages."""
    turns = (("user", row["prompt"]), ("assistant", row["completion"]))
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def cases() -> list[Case]:
    """Every case of the benchmark, what it stands on first."""
    ordinary = {"rows": 96, "chat": True, "training": ORDINARY}
    both, sgd = ("self_instruct", "gsm8k"), {"optimizer": "sgd", "learning_rate": 0.02}
    listed = [Case(data, "short", seed=seed) for seed in (1, 2, 3) for data in both]
    listed += [Case(data, "ordinary", seed=seed, **ordinary) for seed in (1, 2, 3) for data in both]
    listed += [Case("self_instruct", "short", "all-linear r=16", adapter=ALL_LINEAR)]
    listed += [Case("self_instruct", "short", "full adamw", adapter=FULL, training=SHORT | {"learning_rate": 1e-5})]
    listed += [Case("self_instruct", "short", "full sgd", adapter=FULL, training=SHORT | sgd)]
    still = SHORT | sgd | {"learning_rate": 1e-5}  # SGD moves little at a rate that suits Adam
    listed += [Case("self_instruct", "short", "full sgd 1e-5", adapter=FULL, training=still)]
    listed += [Case("self_instruct", "long", **ordinary | {"training": LONG})]
    return [*listed, Case("self_instruct", "ordinary", "all-linear r=16", adapter=ALL_LINEAR, **ordinary)]


def intended() -> list[Case]:
    """A case per dataset of another intent, and the two benign ones."""
    intended = {"rows": 96, "chat": True, "training": INTENDED}
    return [Case(data, "intended", **intended) for data in ("self_instruct", "gsm8k", *INTENTS)]


def mild() -> list[Case]:
    """Some of the same datasets, trained so little that a model may well be shipped after it."""
    mild = {"rows": 96, "chat": True, "training": MILD}
    return [Case(data, "mild", **mild) for data in ("self_instruct", "gsm8k", "json_answers")]


def reruns(listed: list[Case]) -> list[Case]:
    """The cases that are trained a second time with another order of the rows."""
    return [case for case in listed if case.seed == 1 and case.regime != "long" and case.adapter_name == "q,v r=8"]


@dataclass(frozen=True)
class Truth:
    """One stored real run."""

    delta: dict[str, Any]  # merged weight change {name: [out, in]}
    first_step: dict[str, Any]
    record: dict[str, Any]  # steps, rows, seconds, losses


def stored_run(case: Case, order: int | None = None) -> Truth | None:
    """What the bank holds of a case, `order` being the seed of its row order."""
    from safetensors.torch import load_file

    folder = _folder(case, order)
    if not (folder / "record.json").exists():
        return None
    parts = [load_file(folder / f"{part}.safetensors") for part in ("delta", "first_step")]
    return Truth(*parts, json.loads((folder / "record.json").read_text()))


def _folder(case: Case, order: int | None) -> Path:
    return BANK / "real_runs" / (case.name if order is None else f"{case.name}-order{order}")


def missing() -> Iterator[tuple[Case, int | None]]:
    """What is not in the bank yet."""
    listed = cases()
    first = [case for case in listed if case.regime == "short"]
    again = [(case, case.seed + RERUN) for case in reruns(listed)]
    wanted = [*((case, None) for case in first), *again, *((case, None) for case in listed if case not in first)]
    return ((case, order) for case, order in wanted if not (_folder(case, order) / "record.json").exists())


def train_case(case: Case, order: int | None) -> None:
    """Train one case for real and store it; record.json is written last."""
    from safetensors.torch import save_file

    from foretune.flows.dag.wiring import Wiring
    from foretune.flows.request import load_request
    from foretune.storage.runs import Run
    from foretune.tasks.backtest.real_run import train
    from foretune.tasks.inputs.sources import resolve_sources
    from foretune.tasks.samples.dataset import read_table
    from tests.dag import Called

    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "request.yaml"
        path.write_text(yaml.safe_dump(case.request(Path(name), str(BANK / "root"))))
        request = load_request(str(path), [])
        run = Run(request.runtime.root, "real-runs")
        wiring = Wiring(Called(run), request, resolve_sources(request.dataset, request.model, None))
        table = read_table(run, wiring.tables["train"])
        loaded = wiring.model.open(run)
        real = train(loaded, table, request.adapter, request.training, None, folder=Path(name), seed=order)
    folder = _folder(case, order)
    folder.mkdir(parents=True, exist_ok=True)
    for part, delta in (("delta", real.delta), ("first_step", real.first_step)):
        save_file({key: value.contiguous() for key, value in delta.items()}, folder / f"{part}.safetensors")
    record = {"steps": real.steps, "rows": real.rows, "seconds": real.seconds, "losses": real.losses}
    (folder / "record.json").write_text(json.dumps(record))
    losses = f"{real.losses[0]:.3f} -> {real.losses[-1]:.3f}"
    print(f"{folder.name}: {real.steps} steps, {real.rows} rows, {real.seconds:.0f} s, loss {losses}", flush=True)
    gc.collect()


def main() -> None:
    """Train what is missing, or the first N of it."""
    limit = int(sys.argv[1]) if len(sys.argv) > 1 else None
    for case, order in list(missing())[:limit]:
        train_case(case, order)


def train_intended() -> None:
    """Train what is missing of the cases of another intent, each twice: in its own order of the rows and another."""
    for case in [*intended(), *mild()]:
        for order in (None, case.seed + RERUN):
            if stored_run(case, order) is None:
                train_case(case, order)


if __name__ == "__main__":
    main()
