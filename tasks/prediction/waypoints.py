"""Points of the predicted path on its way: where the weights are after a share of the run, as LoRA's two factors.

Nothing is measured again: the recursion is advanced over the stored gradients and their shift along the path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foretune.storage.contents import Artifact
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.adapted import adapt
from foretune.tasks.inputs.handles import ModelHandle, device_lock
from foretune.tasks.inputs.training import TrainingSettings
from foretune.tasks.loading import AdapterSettings
from foretune.tasks.prediction.adapter_factors import read_factors, write_factors
from foretune.tasks.prediction.gradient_shifts import TRAIN_SHIFT, stored_shift
from foretune.tasks.prediction.trajectory import evaluation_steps
from foretune.tasks.prediction.virtual_run import virtual_run

if TYPE_CHECKING:
    from torch import Tensor

    from foretune.tasks.numerics.replay import Factors


@content_task(version=1)
def waypoints(
    draft: Any,
    run: Run,
    nodes: list[ArtifactRef],
    path: ArtifactRef,
    model: ModelHandle,
    adapter: AdapterSettings,
    training: TrainingSettings,
    dpo_beta: float | None,
    points: int,
    max_relative_change: float,
) -> None:
    """Up to `points` evenly spaced steps before the end, each bounded as the end is: waypoints.json and a file each."""
    from foretune.tasks.numerics.bounds import bounded

    adapted = adapt(model.open(run), adapter, training.seed)
    virtual = virtual_run(run, nodes, adapted, training, paired=dpo_beta is not None)
    steps = [step for step in evaluation_steps(virtual.steps, points + 1) if step < virtual.steps]
    with device_lock(adapted.loaded):
        replay = virtual.replayed(steps, stored_shift(run.store.open(path), TRAIN_SHIFT, adapted.loaded.device))
        for step in steps:
            shares = bounded(replay.delta_at(step), adapted.weights, max_relative_change).shares
            factors = {name: (a, b * shares[name]) for name, (a, b) in replay.factors_at(step).items()}
            write_factors(draft, factors, waypoint_file(step))
    draft.write_json("waypoints.json", {"steps": steps, "end": virtual.steps})


def waypoint_steps(stored: Artifact) -> list[int]:
    """The steps of the waypoints, rising; the run's end is none of them."""
    return stored.json("waypoints.json")["steps"]


def waypoint_factors(stored: Artifact, step: int) -> Factors:
    """LoRA's factors after `step` steps."""
    return read_factors(stored, waypoint_file(step))


def merged(factors: Factors, scale: float, device: Any = "cpu") -> dict[str, Tensor]:
    """The weight change that LoRA's factors stand for, {name: [out, in]}; `scale` is alpha / r or its like."""
    return {name: scale * b.to(device) @ a.to(device) for name, (a, b) in factors.items()}


def waypoint_file(step: int) -> str:
    return f"waypoint-{step:06d}.safetensors"
