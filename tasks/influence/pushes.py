"""Which training rows push a feature, on demand: one forward and backward for it, and the rows' stored gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.influence.derivatives import batch_moments
from foretune.tasks.influence.target_gradients import activation_gradient
from foretune.tasks.inputs.adapted import space_of
from foretune.tasks.inputs.field import per_row_gradients
from foretune.tasks.inputs.handles import ModelHandle, SaeHandle
from foretune.tasks.inputs.training import TrainingSettings
from foretune.tasks.loading import AdapterSettings, lora_scale
from foretune.tasks.samples.dataset import row_numbers
from foretune.tasks.samples.rows import SubsetRows

if TYPE_CHECKING:
    from torch import Tensor


def pushing_rows(
    run: Run,
    feature: int,
    samples: ArtifactRef,
    nodes: list[ArtifactRef],
    gradient: ArtifactRef,
    rows: SubsetRows,
    model: ModelHandle,
    sae: SaeHandle,
    adapter: AdapterSettings,
    training: TrainingSettings,
    dtype: str,
) -> list[dict[str, Any]] | None:
    """Every training row with the change of the feature's mean activation on `rows` that it causes over the run, to
    first order (`preconditioned` of the ranking), the largest first; None where rows were not kept one by one.

    `nodes` and `gradient` are those of the training landscape.
    """
    kept = per_row_gradients(run, nodes, lora_scale(adapter)) if adapter.method == "lora" else None
    if kept is None:
        return None
    import torch

    found, tokens = activation_gradient(model.open(run), sae.open(), rows.read(run), feature, adapter.targets)
    mean = {name: (each / tokens).float().cpu() for name, each in found.items()}
    shapes = {name: tuple(each.shape) for name, each in mean.items()}
    pulled = space_of(shapes, adapter, training.seed, getattr(torch, dtype)).pull(mean)
    if training.optimizer == "adamw":
        moments = batch_moments(run, nodes, adapter, training.seed, dtype, training.rows_per_step)
        pulled = {
            name: moments(name).adam(each.flatten().unsqueeze(0), training.adam_epsilon)
            for name, each in pulled.items()
        }
    total: Tensor = torch.zeros(len(kept.ids), dtype=torch.float64)
    for name in kept.names:
        total += (kept.block(name) @ pulled[name].flatten()).double()
    counts = run.store.open(gradient).json("counts.json")
    scores = -sum(training.rates(counts["rows"])) / counts["tokens"] * total
    numbers = row_numbers(run, samples)
    scored = [{"row": numbers[sample], "push": float(score)} for sample, score in zip(kept.ids, scores, strict=True)]
    return sorted(scored, key=lambda each: (-each["push"], each["row"]))
