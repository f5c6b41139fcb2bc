"""The measured path of an earlier run, in the place of a run's own: whether it serves, and how it is read.

A path serves a run with the same model, adapter, optimizer and evaluation rows, whose rows are nearly the same and
whose summed learning rates do not lead further than it was measured. Other rates, schedules, epochs and batch sizes
pass along nearly the same weights, sooner or later.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from foretune.storage.contents import Artifact
from foretune.tasks.samples.shards import salted_hash

if TYPE_CHECKING:
    from foretune.tasks.numerics.drift import Drift

SKETCH = 256  # hashes kept of a set of rows
ALIKE = 0.9  # share of all rows of both runs that both have
FURTHER = 1.02  # how much further a run may lead: steps are whole

SAME = {
    "model": "model",
    "adapter": "adapter",
    "dpo_beta": "objective",
    "evaluation": "set of evaluated held-out rows",
}
SAME_TRAINING = ("seed", "optimizer", "adam_beta1", "adam_beta2", "adam_epsilon", "momentum", "nesterov")


def sketch(sample_ids: Iterable[str]) -> list[str]:
    """The smallest hashes of a set of rows: what two sets have in common is read off them (Broder 1997)."""
    return [f"{value:016x}" for value in heapq.nsmallest(SKETCH, {salted_hash(each, "path") for each in sample_ids})]


def alike(first: list[str], second: list[str]) -> float:
    """Share of the rows of both sets that are in both, from their sketches; exact for sets below SKETCH rows."""
    union = sorted({*first, *second})[:SKETCH]
    return len({*first, *second}.intersection(first, second, union)) / len(union) if union else 1.0


def own(inputs: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether the path with these declared inputs is the very one that a run would measure itself."""
    return all(inputs.get(name) == value for name, value in wanted.items())


def unfit(
    inputs: dict[str, Any], stored: dict[str, Any], wanted: dict[str, Any], rows: list[str], travel: float
) -> str:
    """Why a path does not serve a run, in a few words; empty where it does.

    `inputs` and `stored` are the path's declared inputs and its path.json, `wanted` the declared inputs of the run's
    own path, `rows` the sketch of its rows and `travel` its summed learning rates.
    """
    other = [said for name, said in SAME.items() if inputs.get(name) != wanted[name]]
    before, now = inputs.get("training", {}), wanted["training"]
    other += [f"training.{name}" for name in SAME_TRAINING if before.get(name) != now[name]]
    if other:
        return f"another {', '.join(other)}"
    if travel > FURTHER * stored["travel"]:
        return f"it leads {stored['travel']:.3g} far in summed learning rates, this run {travel:.3g}"
    shared = alike(stored["rows"], rows)
    return "" if shared >= ALIKE else f"only {shared:.0%} of the rows are in both"


def distance(stored: dict[str, Any], rows: list[str], travel: float) -> float:
    """How far a path that serves is from a run: in the logarithm of the travel, and in rows that are not in both."""
    return abs(math.log(stored["travel"] / travel)) + 1 - alike(stored["rows"], rows) if travel else 0.0


def drift_file(what: str, step: int) -> str:
    """Of what moved (DRIFT or HELDOUT_DRIFT of foretune.tasks.prediction.trajectory) until a step."""
    return f"{what}-{step:06d}.safetensors"


def stored_drift(path: Artifact, what: str, device: Any = "cpu") -> Drift:
    """How far a mean gradient has moved along a stored path, memory-mapped."""
    from foretune.tasks.numerics.drift import Drift

    points = path.json("path.json")["moved"].get(what, [])
    files = [path.tensor_file(drift_file(what, step)) for step, _ in points]
    travels = tuple(travel for _, travel in points)
    return Drift(travels, lambda point, name: files[point].get_tensor(name).to(device))
