"""One request trained and simulated, each as a process of its own: what both cost, and how near the simulation comes.

`python -m tests.benchmarks.paired_runs FOLDER [--order N]` is the training of FOLDER/request.yaml, which
`PairedRun.trained` starts. What has been run stays in the folder and is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.benchmarks.prediction import Scored
from tests.benchmarks.real_runs import Truth

BETWEEN_LOOKS = 0.25  # seconds between two readings of a GPU's memory


@dataclass(frozen=True)
class PairedRun:
    """A folder with request.yaml, and beside it what came of its training and of its simulations."""

    folder: Path

    @property
    def request(self) -> Path:
        return self.folder / "request.yaml"

    def truth(self, order: int | None = None) -> Path:
        """The record of the training; beside it as safetensors the weight change. `order`: in another order of rows."""
        return self.folder / ("real.json" if order is None else f"real-order{order}.json")

    def trained(self, order: int | None = None) -> dict[str, Any]:
        """The training's record; trained first where there is none."""
        if not self.truth(order).exists():
            words = [sys.executable, "-m", "tests.benchmarks.paired_runs", str(self.folder)]
            took = process([*words, *([] if order is None else ["--order", str(order)])])
            record = json.loads(self.truth(order).read_text())
            cost = {name: took[name] for name in ("seconds", "cpu_seconds", "peak_mb", "gpu_peak_mb")}
            self.truth(order).write_text(json.dumps(record | cost))
        return json.loads(self.truth(order).read_text())

    def simulated(self, share: float | None) -> dict[str, Any]:
        """`foretune simulate` with this budget (None: exhaustive) on a root of its own: what it cost.

        Suites, answers and circuits are left as the request's defaults have them: what a user pays for is measured.
        """
        name = "exhaustive" if share is None else f"{share:g}"
        root, kept = self.folder / f"root-{name}", self.folder / f"simulated-{name}.json"
        words = [str(Path(sys.executable).with_name("foretune")), "simulate", str(self.request), "--root", str(root)]
        words += ["--json", *([] if share is None else ["--set", f"effort.budget={share:g}"])]
        if not kept.exists():
            took = process(words)
            result = json.loads(took.pop("said").splitlines()[-1])
            stored = sum(file.stat().st_size for file in root.rglob("*") if file.is_file())
            kept.write_text(json.dumps(took | {"run_id": result["run_id"], "cost": result["cost"], "bytes": stored}))
        return json.loads(kept.read_text()) | {"root": str(root), "budget": share}

    def row(self, budget: float | None) -> dict[str, Any]:
        """One budget beside the training: how near, at what cost."""
        from foretune.flows.request import load_request
        from foretune.storage.results import artifact_of
        from foretune.storage.runs import Run
        from foretune.tasks.inputs.adapter_factors import stored_delta

        real, took = self.trained(), self.simulated(budget)
        run = Run(took["root"], took["run_id"])
        prediction = run.store.open(artifact_of(run, "prediction"))
        return {
            "budget": budget,
            "effort": "exhaustive" if budget is None else f"budget {budget:g}",
            "method": "foretune",
            **self.axes(stored_delta(prediction)),
            "seconds_simulated": took["seconds"],
            "seconds_real": real["seconds"],
            "cpu_seconds_simulated": took["cpu_seconds"],
            "cpu_seconds_real": real["cpu_seconds"],
            "cpu_ratio": round(took["cpu_seconds"] / real["cpu_seconds"], 3),
            "forward_equivalents_simulated": round(took["cost"]["forward_passes"], 2),
            "forward_equivalents_real": round(3 * load_request(str(self.request), []).training.epochs, 2),
            "gradient_samples": prediction.json("summary.json")["gradient_samples_used"],
            "peak_mb": took["peak_mb"],
            "peak_mb_training_step": real["peak_mb"],
            "gpu_peak_mb": took.get("gpu_peak_mb"),
            "gpu_peak_mb_training_step": real.get("gpu_peak_mb"),
            "bytes": took["bytes"],
        }

    def rerun_row(self, order: int) -> dict[str, Any]:
        """A second training in another order of the rows beside the first: as near as a simulation can hope to come."""
        real, method = self.trained(order), "real run, other order"
        return {
            "effort": method,
            "method": method,
            **self.axes(self.change(order)),
            "cpu_seconds_real": real["cpu_seconds"],
        }

    def change(self, order: int | None = None) -> dict[str, Any]:
        """The trained weight change, {name: [out, in]}."""
        from safetensors.torch import load_file

        return load_file(self.truth(order).with_suffix(".safetensors"))

    def axes(self, delta: dict[str, Any]) -> dict[str, float]:
        """Direction, size, loss, layers and concepts of a weight change beside the training's."""
        return self.scored.axes(delta, Truth(self.change(), {}, {}))

    @cached_property
    def scored(self) -> Scored:
        from foretune.storage.runs import Run
        from foretune.tasks.inputs.adapted import adapt
        from foretune.tasks.samples.dataset import read_table

        run = Run(str(self.folder / "real_root"), "real")
        wiring = self.wired(run)
        adapted = adapt(wiring.model.open(run), wiring.request.adapter, wiring.request.training.seed)
        return Scored(adapted, read_table(run, wiring.tables["heldout"]), wiring.sources.sae)

    def wired(self, run: Any) -> Any:
        """The request's passes, called one by one on a root."""
        from foretune.flows.dag.wiring import Wiring
        from foretune.flows.request import load_request
        from foretune.tasks.inputs.sources import resolve_sources
        from tests.dag import Called

        request = load_request(str(self.request), [f"runtime.root={run.root}"])
        return Wiring(Called(run), request, resolve_sources(request.dataset, request.model, request.sae))

    def train(self, order: int | None) -> None:
        """The training, in this process."""
        from safetensors.torch import save_file

        from foretune.storage.runs import Run
        from foretune.tasks.backtest.real_run import train as really
        from foretune.tasks.samples.dataset import read_table

        run = Run(str(self.folder / "real_root"), "real")
        wiring = self.wired(run)
        table, loaded, request = read_table(run, wiring.tables["train"]), wiring.model.open(run), wiring.request
        real = really(loaded, table, request.adapter, request.training, None, folder=self.folder, seed=order)
        weights = {name: change.contiguous() for name, change in real.delta.items()}
        save_file(weights, self.truth(order).with_suffix(".safetensors"))
        tokens = sum(len(ids) for ids in table["input_ids"].to_pylist())
        record = {"steps": real.steps, "rows": real.rows, "tokens": tokens, "losses": real.losses}
        self.truth(order).write_text(json.dumps(record))


def process(words: list[str]) -> dict[str, Any]:
    """A command as a process: its seconds, processor time, largest memory, and that of a GPU which it fills."""
    started = time.perf_counter()
    with _GpuMemory() as gpu:
        done = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert done.stdout is not None
        with done.stdout as told:
            said = told.read()
        _, status, used = os.wait4(done.pid, 0)  # of this one child: the sum over all children keeps the largest
        done.returncode = os.waitstatus_to_exitcode(status)
    if done.returncode not in (0, 3):
        raise SystemExit(f"{' '.join(words)}: status {done.returncode}")
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_mb": round(used.ru_maxrss / 1024),
        "gpu_peak_mb": gpu.peak_mb,
        "said": said,
    }


class _GpuMemory:
    """The largest memory in use on the first GPU meanwhile, what others use before left out; None without a GPU."""

    def __init__(self) -> None:
        self.peak_mb: int | None = None
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> _GpuMemory:
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watch.join()

    def _look(self) -> None:
        before = gpu_memory_mb()
        while before is not None and not self._over.wait(BETWEEN_LOOKS):
            used = gpu_memory_mb()
            self.peak_mb = max(self.peak_mb or 0, (used or 0) - before)


def gpu_memory_mb() -> int | None:
    """MiB in use on the first GPU, as nvidia-smi says; None where there is none."""
    if shutil.which("nvidia-smi") is None:
        return None
    asked = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    told = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    return int(told) if told.isdigit() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--order", type=int, help="seed of another order of the rows")
    chosen = parser.parse_args()
    PairedRun(chosen.folder).train(chosen.order)


if __name__ == "__main__":
    main()
