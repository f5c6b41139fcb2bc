"""Log-likelihoods under the predicted model with what one feature does there taken back, whatever is read how."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from foretune.tasks.loading.hooks import replaced_residuals

if TYPE_CHECKING:
    from torch import Tensor

    from foretune.tasks.loading import LoadedModel
    from foretune.tasks.saes import LoadedSae


@dataclass(frozen=True)
class Intervention:
    """A feature, by its place among those tried, whose move is taken back along a direction [d] where the SAE reads."""

    place: int
    direction: Tensor


@dataclass
class Activations:
    """What features do on every token of every forward, in the order of the forwards: [b, s, features] each."""

    calls: list[Tensor] = field(default_factory=list)


@contextlib.contextmanager
def read_activations(loaded: LoadedModel, sae: LoadedSae, features: Sequence[int]) -> Iterator[Activations]:
    """Inside the block every forward of the model is recorded: 0 on padding, and on a row's first token."""
    found = Activations()

    def keep(hidden: Tensor) -> Tensor:
        import torch

        # A row at a time: all features of all rows are many.
        active = torch.stack([sae.encode(row)[:, list(features)] for row in hidden.detach()])
        found.calls.append(active * seen[-1].to(active.device)[..., None])
        return hidden

    with _seen_tokens(loaded) as seen, replaced_residuals(loaded, sae.hook_name, keep):
        yield found


@contextlib.contextmanager
def without_move(
    loaded: LoadedModel, hook_name: str, excess: Sequence[Tensor], intervention: Intervention
) -> Iterator[None]:
    """Inside the block the same forwards again, each without its `excess` [b, s, features] of one feature."""
    from foretune.tasks.numerics.interventions import taken_back

    at = iter(excess)

    def change(hidden: Tensor) -> Tensor:
        less = next(at)[..., intervention.place].to(hidden.device)
        return taken_back(hidden, less, intervention.direction.to(hidden.device))

    with replaced_residuals(loaded, hook_name, change):
        yield
    assert next(at, None) is None, "the model was read another way than when its activations were"


@contextlib.contextmanager
def _seen_tokens(loaded: LoadedModel) -> Iterator[list[Tensor]]:
    """Of every forward inside the block which of its tokens [b, s] are neither padding nor a row's first; those that a
    cache holds are counted, not told."""
    found: list[Tensor] = []

    def before(module: Any, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        mask = given["attention_mask"]
        new = given["input_ids"].shape[1]
        found.append(((mask > 0) & (mask.cumsum(-1) > 1))[:, -new:])

    handle = loaded.model.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


def moves(base: Activations | None, predicted: Activations) -> list[Tensor]:
    """Per forward what the features do in the predicted model beyond the base, or beyond nothing without one."""
    if base is None:
        return predicted.calls
    return [after - before.to(after.device) for before, after in zip(base.calls, predicted.calls, strict=True)]


def read_with_each(
    models: tuple[LoadedModel, LoadedModel],
    sae: LoadedSae,
    features: Sequence[int],
    interventions: Sequence[Intervention],
    to_base: bool,
    read: Callable[[LoadedModel], Any],
) -> tuple[Any, Any, list[Any]]:
    """What `read` gives under the base, the predicted model, and the predicted one with each intervention. It must
    send the same tokens through whichever model it gets."""
    found, active = [], []
    for loaded in models:
        with read_activations(loaded, sae, features) as seen:
            found.append(read(loaded))
        active.append(seen)
    excess = moves(active[0] if to_base else None, active[1])
    changed = []
    for each in interventions:
        with without_move(models[1], sae.hook_name, excess, each):
            changed.append(read(models[1]))
    return found[0], found[1], changed
