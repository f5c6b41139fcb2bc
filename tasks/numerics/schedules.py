"""Learning rates of a run, one per optimiser step."""

from __future__ import annotations

import math

SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")


def learning_rates(schedule: str, base_lr: float, steps: int, warmup_steps: int = 0) -> list[float]:
    """The rate in force at optimiser steps 0 .. steps-1, as `transformers.get_scheduler` sets it.

    `constant` ignores the warm-up, as it does there; `constant_with_warmup` honours it.
    Raises ValueError for an unknown schedule or a negative count.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule {schedule!r} is unknown: use one of {', '.join(SCHEDULES)}")
    if steps < 0 or warmup_steps < 0:
        raise ValueError(f"steps ({steps}) and warmup_steps ({warmup_steps}) must not be negative")
    return [base_lr * _factor(schedule, step, steps, warmup_steps) for step in range(steps)]


def _factor(schedule: str, step: int, steps: int, warmup_steps: int) -> float:
    if schedule == "constant":
        return 1.0
    if step < warmup_steps:
        return step / max(1, warmup_steps)
    if schedule == "constant_with_warmup":
        return 1.0
    if schedule == "linear":
        return max(0.0, (steps - step) / max(1, steps - warmup_steps))
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
