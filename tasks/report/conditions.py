"""The verdict as a short list of conditions, and what the training is worth: each a figure, a band and a remedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Status = Literal["pass", "warn", "fail", "unknown"]
STATUSES: tuple[Status, ...] = ("pass", "unknown", "warn", "fail")
"""From the best to the worst: the verdict is the worst of them. What nobody measured stops nothing."""
ROWS_NAMED = 5


@dataclass(frozen=True)
class Condition:
    """One thing that has to hold before training is worth it."""

    name: str
    question: str  # as people ask it
    value: float | None  # None: not measured
    unit: str
    band: str  # what would pass, in words
    status: Status
    rows: tuple[int, ...] = ()  # the first row numbers, at most `ROWS_NAMED`
    row_count: int = 0  # of all rows that it is about
    reason: str = ""
    remedy: str = ""  # a command with {run} in the run id's place, or ""


@dataclass(frozen=True)
class Worth:
    """What the training brings, from evaluated points only; None: not measured. Its price is the run record's `Cost`.

    All losses are held-out losses in nats per token.
    """

    gain: float  # base loss - loss evaluated on the predicted weights
    gain_error: float | None  # standard error of the gain over the held-out rows
    spread: float | None  # between real runs that differ in their order alone, where a backtest measured it
    steps: int  # of the run
    step_at_90: int | None  # the first evaluated step with 90 % of the gain


def worst(conditions: Sequence[Condition]) -> Status:
    """The status of the verdict."""
    return max((each.status for each in conditions), key=STATUSES.index, default="unknown")
