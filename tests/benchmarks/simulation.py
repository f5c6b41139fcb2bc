"""What the demo's simulation costs: seconds per pass, peak memory, and the same again with everything stored.

`make bench-simulation` writes results/simulation.json. The floor beside it is one forward and backward over the
same training rows, in the same run on the same machine.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.environment import write_results

PROJECT = Path(__file__).parents[2]
REQUEST = "examples/demo/request.yaml"


def simulated(root: str) -> tuple[float, dict[str, Any]]:
    """Wall-clock seconds of the command, start-up included, and its result."""
    started = time.perf_counter()
    command = [str(Path(sys.executable).with_name("foretune")), "simulate", REQUEST, "--root", root, "--json"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True, env=dict(os.environ))
    return time.perf_counter() - started, json.loads(done.stdout.splitlines()[-1])


def epoch_seconds(root: str) -> float:
    """One forward and backward over the training rows, without any of foretune's bookkeeping."""
    from flows.exports import artifact_of
    from flows.request import load_request
    from storage.artifacts import ArtifactRef
    from storage.runs import latest
    from tasks.adapted import adapt
    from tasks.dataset import read_table
    from tasks.evaluation import RowsAtWeights
    from tasks.model import ModelHandle

    run, request = latest(root), load_request(str(PROJECT / REQUEST))
    model = next(stored for stored in run.store.iterate() if stored.task == "model")
    ref = ArtifactRef(task=model.task, key=model.key, uri="", sha256="")
    loaded = ModelHandle(source=ref, settings=request.model).open(run)
    rows = RowsAtWeights(
        adapt(loaded, request.adapter, request.training.seed),
        read_table(run, artifact_of(run, "samples")),
        None,
        request.landscape.batch_tokens,
    )
    rows.loss({})
    started = time.perf_counter()
    rows.gradients({})
    return time.perf_counter() - started


def main() -> None:
    """Cold, then identical, on a root of its own."""
    with tempfile.TemporaryDirectory() as root:
        cold, first = simulated(root)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        identical, second = simulated(root)
        floor = epoch_seconds(root)
    rows = [{"scenario": "cold", "task": task, "seconds": seconds} for task, seconds in first["timings"].items()]
    rows += [
        {"scenario": "cold", "task": "all", "seconds": round(cold, 1), "peak_mb": round(peak), **first["tasks"]},
        {"scenario": "identical", "task": "all", "seconds": round(identical, 1), **second["tasks"]},
        {"scenario": "floor", "task": "one forward and backward over the rows", "seconds": round(floor, 1)},
    ]
    for row in rows:
        print(row)
    write_results("simulation", rows)


if __name__ == "__main__":
    main()
