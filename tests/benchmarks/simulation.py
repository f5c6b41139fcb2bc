"""What the demo's simulation costs: seconds per pass, peak memory, and the same again with everything stored.

`make bench-simulation` writes results/simulation.json. Beside it, in the same run on the same machine: the floor,
one forward and backward over the same rows, and the truth, a real run of the same request.
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


class Demo:
    """The demo's model and rows as the stored run read them."""

    def __init__(self, root: str) -> None:
        from foretune.flows.request import load_request
        from foretune.storage.refs import ArtifactRef
        from foretune.storage.results import artifact_of
        from foretune.storage.runs import resolve_run
        from foretune.tasks.inputs.adapter_factors import stored_delta
        from foretune.tasks.inputs.handles import ModelHandle
        from foretune.tasks.samples.dataset import read_table

        self.run, self.request = resolve_run(root, "latest"), load_request(str(PROJECT / REQUEST))
        refs = {s.task: ArtifactRef(task=s.task, key=s.key, uri="", sha256="") for s in self.run.store.iterate()}
        self.loaded = ModelHandle(source=refs["model"], settings=self.request.model).open(self.run)
        self.train = read_table(self.run, artifact_of(self.run, "samples"))
        landscape = artifact_of(self.run, "heldout_landscape")
        read = self.run.store.manifest(landscape.task, landscape.key).inputs["samples"]
        self.heldout = read_table(self.run, ArtifactRef(task=read["task"], key=read["key"], uri="", sha256=""))
        prediction = self.run.store.open(artifact_of(self.run, "prediction"))
        self.predicted = stored_delta(prediction)

    def at_weights(self, table: Any) -> Any:
        """Rows whose loss and gradients can be taken at any weights."""
        from foretune.tasks.inputs.adapted import adapt
        from foretune.tasks.prediction.evaluation import RowsAtWeights

        adapted = adapt(self.loaded, self.request.adapter, self.request.training.seed)
        return RowsAtWeights(adapted, table, None, self.request.landscape.batch_tokens)


def epoch_seconds(demo: Demo) -> float:
    """One forward and backward over the training rows, without any of foretune's bookkeeping."""
    rows = demo.at_weights(demo.train)
    started = time.perf_counter()
    rows.gradients({})
    return time.perf_counter() - started


def trained_delta(demo: Demo) -> dict[str, Any]:
    """Merged weight change of a real run under the same request: peft's LoRA, torch's AdamW, rows shuffled."""
    import copy

    import torch
    from peft import get_peft_model
    from transformers import get_scheduler

    from foretune.tasks.loading import lora_config, lora_scale
    from foretune.tasks.numerics.losses import sample_losses
    from foretune.tasks.samples.minibatches import minibatches

    training, adapter = demo.request.training, demo.request.adapter
    torch.manual_seed(training.seed)
    model = get_peft_model(copy.deepcopy(demo.loaded.model), lora_config(adapter)).eval()
    trained = [row for row, mask in enumerate(demo.train["loss_mask"].to_pylist()) if any(mask[1:])]
    moving = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(moving, lr=training.learning_rate, weight_decay=training.weight_decay)
    steps = training.steps(len(trained))
    schedule = get_scheduler(training.lr_scheduler_type, optimizer, training.warmup_steps(len(trained)), steps)
    for _ in range(int(training.epochs)):
        order = [trained[i] for i in torch.randperm(len(trained)).tolist()]
        for start in range(0, len(order), training.batch_size):
            rows = demo.train.take(order[start : start + training.batch_size])
            (minibatch,) = minibatches(rows, 10**6)
            batch = minibatch.batch
            losses = sample_losses(model(batch.input_ids, attention_mask=batch.attention_mask).logits, batch.labels)
            (losses.loss_sum.sum() / losses.tokens.sum()).backward()
            torch.nn.utils.clip_grad_norm_(moving, training.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    factors = dict(model.named_parameters())
    delta = {}
    for name in demo.predicted:
        module = f"base_model.model.{name.removesuffix('.weight')}"
        up, down = (factors[f"{module}.lora_{side}.default.weight"].detach() for side in "BA")
        delta[name] = lora_scale(adapter) * up @ down
    return delta


def against_training(demo: Demo) -> dict[str, Any]:
    """The predicted checkpoint beside a real run: direction, size, and share of the held-out loss drop."""
    from foretune.tasks.numerics.vectors import dot, norm

    started = time.perf_counter()
    real = trained_delta(demo)
    seconds = time.perf_counter() - started
    heldout = demo.at_weights(demo.heldout)
    base, predicted, trained = heldout.loss({}), heldout.loss(demo.predicted), heldout.loss(real)
    return {
        "cosine": round(dot(demo.predicted, real) / norm(demo.predicted) / norm(real), 4),
        "norm_ratio": round(norm(demo.predicted) / norm(real), 4),
        "heldout_loss_base": round(base, 4),
        "heldout_loss_predicted_weights": round(predicted, 4),
        "heldout_loss_trained": round(trained, 4),
        "share": round((base - predicted) / (base - trained), 4),
        "seconds": round(seconds, 1),
    }


def main() -> None:
    """Cold, then identical, on a root of its own; then the floor, and a real run of the same request."""
    with tempfile.TemporaryDirectory() as root:
        cold, first = simulated(root)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        identical, second = simulated(root)
        demo = Demo(root)
        floor = epoch_seconds(demo)
        truth = against_training(demo)
    rows = [{"scenario": "cold", "task": task, "seconds": seconds} for task, seconds in first["timings"].items()]
    rows += [
        {"scenario": "cold", "task": "all", "seconds": round(cold, 1), "peak_mb": round(peak), **first["tasks"]},
        {"scenario": "identical", "task": "all", "seconds": round(identical, 1), **second["tasks"]},
        {"scenario": "floor", "task": "one forward and backward over the rows", "seconds": round(floor, 1)},
        {"scenario": "trained", "task": "a real run of the same request", **truth},
    ]
    for row in rows:
        print(row)
    write_results("simulation", rows)


if __name__ == "__main__":
    main()
