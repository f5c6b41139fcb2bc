"""The margin of an item as a smooth function of its options' log-likelihoods: what a suite's gradient is taken of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from foretune.tasks.behaviour.items import ChoiceItem, Item, LossItem, RefusalItem, TraitItem

if TYPE_CHECKING:
    from torch import Tensor

WITH_MARGIN = ("choice", "trait", "refusal", "loss")
"""Scorers whose items have one; a refusal that is read off a written answer has none."""


def has_margin(item: Item) -> bool:
    """Whether an item's score follows from likelihoods, of which there is a gradient."""
    return item.scorer in WITH_MARGIN and not (isinstance(item, RefusalItem) and item.by == "phrase")


def unit_of(item: Item) -> str:
    """The unit of its margin."""
    return "nats per token" if isinstance(item, LossItem) else "nats of margin"


def smooth_margin(item: Item, nats: Tensor, tokens: Sequence[int]) -> Tensor:
    """Nats, as `suite_scores` has them: of what is right, shows the trait or refuses over what does not; of a text its
    loss per token. Only a choice of more than two options differs: the sum of the others stands for their largest."""
    import torch

    if isinstance(item, ChoiceItem):
        others = [n for n in range(len(nats)) if n != item.answer]
        return nats[item.answer] - torch.logsumexp(nats[others], 0)
    if isinstance(item, TraitItem):
        return nats[item.trait] - nats[1 - item.trait]
    if isinstance(item, RefusalItem):
        refusing, complying = nats[: len(item.refusing)], nats[len(item.refusing) :]
        means = [torch.logsumexp(side, 0) - math.log(len(side)) for side in (refusing, complying)]
        return means[0] - means[1]
    return -nats[0] / tokens[0]


def margin_weights(item: Item, nats: Sequence[float], tokens: Sequence[int]) -> tuple[float, list[float]]:
    """The margin, and its derivative by each option's log-likelihood."""
    import torch

    leaf = torch.tensor(list(nats), dtype=torch.float64, requires_grad=True)
    margin = smooth_margin(item, leaf, tokens)
    (weights,) = torch.autograd.grad(margin, leaf)
    return float(margin.detach()), weights.tolist()
