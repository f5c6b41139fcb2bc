"""Whether the measured path of an earlier run can replace a run's own.

It can when model, adapter, optimizer and evaluation rows are the same, the training rows are nearly the same, and
the cumulative learning rate of the run does not exceed that of the path. Other rates, schedules, epochs and batch
sizes pass through nearly the same weights, after fewer or more steps.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from typing import Any

from foretune.tasks.samples.shards import salted_hash

SKETCH = 256  # hashes kept of a set of rows
MIN_SHARED_ROWS = 0.9  # share of all rows of both runs that are in both
MAX_LR_RATIO = 1.02  # cumulative learning rate of a run over that of the path; not 1, because steps are whole

SAME = {
    "model": "model",
    "adapter": "adapter",
    "dpo_beta": "objective",
    "evaluation": "set of evaluated held-out rows",
}
SAME_TRAINING = ("seed", "optimizer", "adam_beta1", "adam_beta2", "adam_epsilon", "momentum", "nesterov")


def sketch(sample_ids: Iterable[str]) -> list[str]:
    """The smallest hashes of a set of rows, from which the overlap of two sets is estimated (Broder 1997)."""
    return [f"{value:016x}" for value in heapq.nsmallest(SKETCH, {salted_hash(each, "path") for each in sample_ids})]


def jaccard(first: list[str], second: list[str]) -> float:
    """Share of the rows of both sets that are in both, from their sketches; exact for sets below SKETCH rows."""
    union = sorted({*first, *second})[:SKETCH]
    return len({*first, *second}.intersection(first, second, union)) / len(union) if union else 1.0


def is_same_path(inputs: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether the path with these declared inputs is the one that the run would measure itself."""
    return all(inputs.get(name) == value for name, value in wanted.items())


def mismatch(
    inputs: dict[str, Any], stored: dict[str, Any], wanted: dict[str, Any], rows: list[str], elapsed_lr: float
) -> str:
    """The reason why a path cannot replace the run's own, in a few words; empty where it can.

    `inputs` and `stored` are the path's declared inputs and its path.json, `wanted` the declared inputs of the run's
    own path, `rows` the sketch of its rows and `elapsed_lr` its cumulative learning rate.
    """
    other = [description for name, description in SAME.items() if inputs.get(name) != wanted[name]]
    before, now = inputs.get("training", {}), wanted["training"]
    other += [f"training.{name}" for name in SAME_TRAINING if before.get(name) != now[name]]
    if other:
        return f"another {', '.join(other)}"
    if elapsed_lr > MAX_LR_RATIO * stored["travel"]:
        return f"it leads {stored['travel']:.3g} far in summed learning rates, this run {elapsed_lr:.3g}"
    shared = jaccard(stored["rows"], rows)
    return "" if shared >= MIN_SHARED_ROWS else f"only {shared:.0%} of the rows are in both"


def path_distance(stored: dict[str, Any], rows: list[str], elapsed_lr: float) -> float:
    """How different a path is: log ratio of the cumulative learning rates plus share of the rows not in both."""
    return abs(math.log(stored["travel"] / elapsed_lr)) + 1 - jaccard(stored["rows"], rows) if elapsed_lr else 0.0
