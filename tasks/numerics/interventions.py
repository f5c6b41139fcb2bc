"""What taking back one change inside a model does to a loss, by row: is it a cause, or does it only go along?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foretune.tasks.numerics.bootstrap import paired_interval


@dataclass(frozen=True)
class CauseEffect:
    """Of one feature whose change is taken back; nats per token, interval by bootstrap over rows."""

    effect: float  # loss with the change taken back less the loss with it
    low: float | None
    high: float | None
    share: float | None  # of the change of the loss; None where the loss does not change
    random: float | None  # the largest effect of interventions of the same size along others' directions
    verdict: str  # gain: without it less is gained; cost: without it more is; nothing


def taken_back(hidden: Tensor, excess: Tensor, direction: Tensor) -> Tensor:
    """[b, s, d] without `excess` [b, s] of a direction [d]."""
    return hidden - (excess[..., None] * direction).to(hidden)


def of_equal_size(direction: Tensor, other: Tensor) -> Tensor:
    """Another direction [d], as long as this one, so that an intervention along it is as large."""
    return other * (direction.norm() / other.norm().clamp_min(1e-30))


def cause_effect(
    base: Tensor, predicted: Tensor, without: Tensor, tokens: Tensor, controls: list[Tensor], draws: int = 2000
) -> CauseEffect:
    """Sums of nats per row [n] under the base, the predicted model, and that with a change taken back; label tokens per
    row [n]; and the same sums for controls. A verdict other than nothing needs an interval without zero and an effect
    beyond every control's.
    """
    total = float(tokens.sum())
    changes = (without - predicted).double()
    effect, whole = float(changes.sum()) / total, float((base - predicted).double().sum()) / total
    interval = paired_interval(changes, tokens, draws)
    random = max((abs(float((each - predicted).double().sum())) / total for each in controls), default=None)
    sure = interval is not None and (interval.low > 0 or interval.high < 0)
    stands_out = sure and (random is None or abs(effect) > random)
    verdict = "nothing" if not stands_out else "gain" if effect > 0 else "cost"
    low, high = (None, None) if interval is None else (interval.low, interval.high)
    return CauseEffect(effect, low, high, effect / whole if whole else None, random, verdict)


def drawn_features(features: int, left_out: list[int], count: int, seed: int) -> list[int]:
    """`count` others of so many features, each once while there are enough."""
    allowed = [feature for feature in range(features) if feature not in set(left_out)] or list(range(features))
    order = torch.randperm(len(allowed), generator=torch.Generator().manual_seed(seed)).tolist()
    return [allowed[order[at % len(order)]] for at in range(count)]
