"""A model that is asked: the base, a checkpoint, or the base with a stored weight change in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.inputs.adapter_factors import stored_delta
from foretune.tasks.inputs.handles import ModelHandle
from foretune.tasks.loading import LoadedModel, label_caller

if TYPE_CHECKING:
    from torch import Tensor

    from foretune.tasks.numerics.batches import Batch

CHECKPOINT = "checkpoint"


@dataclass(frozen=True)
class AskedModel:
    """An open model, and the weights that stand in place of its own."""

    loaded: LoadedModel
    weights: dict[str, Tensor] = field(default_factory=dict)

    def label_logits(self, batch: Batch) -> Tensor:
        """[n, V] at the label positions of a batch."""
        import torch

        with torch.no_grad():
            return label_caller(self.loaded, list(self.weights))(self.weights, batch)


def placed(run: Run, model: ModelHandle, weights: ArtifactRef | None) -> tuple[LoadedModel, dict[str, Tensor]]:
    """The model to open and the weight change to put in place, for the base where `weights` is None; they may be a
    checkpoint, or an artefact with a weight change."""
    if weights is None:
        return model.open(run), {}
    if weights.task == CHECKPOINT:
        return model.moved_to(weights).open(run), {}
    return model.open(run), stored_delta(run.store.open(weights))


def asked_model(run: Run, model: ModelHandle, weights: ArtifactRef | None) -> AskedModel:
    """The same with the moved weights themselves."""
    loaded, changes = placed(run, model, weights)
    base = {name: loaded.values(name) for name in changes}
    moved = {name: (value + changes[name].to(value)).to(loaded.device) for name, value in base.items()}
    return AskedModel(loaded, moved)


def answer_batches(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], batch_tokens: int, device: object
) -> list[tuple[list[int], Batch]]:
    """Positions and right-padded batches of prompts with their answers, which alone are labels."""
    from foretune.tasks.numerics.batches import IGNORED, buckets, collate

    pairs = [
        ([*prompt, *answer], [*[IGNORED] * len(prompt), *answer])
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    lengths = [len(ids) for ids, _ in pairs]
    groups = buckets(lengths, max([batch_tokens, *lengths]))
    return [(rows, collate([pairs[row] for row in rows]).to(device)) for rows in groups]  # pyright: ignore[reportArgumentType]
