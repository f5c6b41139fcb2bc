"""Suites at weights that are stored nowhere: the base model moved by a delta, for as long as it is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from foretune.storage.runs import Run
from foretune.tasks.behaviour.items import SuiteItems
from foretune.tasks.behaviour.settings import ScoringSettings
from foretune.tasks.inputs.handles import ModelHandle, device_lock
from foretune.tasks.loading import at_weights, token_limits
from foretune.tasks.samples.chat import load_tokenizer
from foretune.tasks.samples.dataset import TokenizerHandle

if TYPE_CHECKING:
    from torch import Tensor


def scores_at(
    run: Run,
    model: ModelHandle,
    tokenizer: TokenizerHandle,
    items: SuiteItems,
    settings: ScoringSettings,
    delta: dict[str, Tensor],
) -> dict[str, float | None]:
    """Score by digest; None for an item that does not fit."""
    from foretune.tasks.behaviour.scoring import score_items

    folder = tokenizer.folder(run)
    loaded, limits = model.open(run), token_limits(folder)
    with device_lock(loaded), at_weights(loaded, delta) as moved:
        scored = score_items(moved, load_tokenizer(folder), items.items, settings, limits.positions)
    return {item.digest: each and each.score for item, each in zip(items.items, scored, strict=True)}
