"""What the passes of a run spent, against what was planned for them when it started."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foretune.tasks.report.pace import equivalents

NAMED = 3  # deviations
OFF = 1.5
"""Seconds, and tokens that were told as about, are off beyond this factor."""
SHORT = 5.0  # seconds that say more of the machine than of the plan


@dataclass(frozen=True)
class PassCost:
    """All computed passes of one task. Forward passes are over the training rows; None where nothing told them."""

    task: str
    forward_passes: float
    planned_forward_passes: float | None
    bound: str | None  # exact | at most | about
    seconds: float
    planned_seconds: float | None

    @property
    def deviation(self) -> tuple[float, str]:
        """How far the plan was off, in forward passes and in words; (0, "") where it holds."""
        planned, spent = self.planned_forward_passes, self.forward_passes
        if planned is not None:
            most = planned * OFF if self.bound == "about" else planned
            least = {"exact": planned, "about": planned / OFF}.get(self.bound or "", 0.0)
            if not least - 0.005 <= spent <= most + 0.005:
                return abs(spent - planned), f"{self.task} {spent:.2f} forward passes, planned {planned:.2f}"
        return 0.0, ""

    @property
    def delay(self) -> tuple[float, str]:
        """The same in seconds."""
        planned = self.planned_seconds
        if planned is None or max(planned, self.seconds) < SHORT:
            return 0.0, ""
        if planned / OFF <= self.seconds <= planned * OFF:
            return 0.0, ""
        return abs(self.seconds - planned), f"{self.task} {self.seconds:.0f} s, planned {planned:.0f}"


def against_plan(
    events: Iterable[Mapping[str, Any]], planned: Sequence[Mapping[str, Any]], tokens: int
) -> tuple[PassCost, ...]:
    """By task, in the order of the plan; of passes that share a label as many are counted as were computed."""
    said: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for each in planned:
        said[each["label"]].append(each)
    done: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for event in events:
        if event["type"] == "pass_finished" and event["label"] in said:
            done[event["task"]].append(event)
    order = dict.fromkeys(each["task"] for each in planned)
    return tuple(_cost(task, done[task], said, tokens) for task in order if task in done)


def _cost(
    task: str, events: Sequence[Mapping[str, Any]], said: Mapping[str, Sequence[Mapping[str, Any]]], tokens: int
) -> PassCost:
    plans = [said[event["label"]] for event in events]
    forwards = [_mean([_planned_equivalents(plan) for plan in each]) for each in plans]
    seconds = [_mean([plan.get("seconds") for plan in each]) for each in plans]
    bounds = {plan.get("bound") for each in plans for plan in each}
    known = None if None in forwards or not tokens else sum(each or 0.0 for each in forwards) / tokens
    return PassCost(
        task,
        sum(equivalents(event) or 0 for event in events) / tokens if tokens else 0.0,
        known,
        next((bound for bound in ("at most", "about", "exact") if bound in bounds), None),
        round(sum(float(event["seconds"]) for event in events), 3),
        None if None in seconds else sum(each or 0.0 for each in seconds),
    )


def _planned_equivalents(plan: Mapping[str, Any]) -> float | None:
    forward = plan.get("forward_tokens")
    return None if forward is None else forward + 2 * (plan.get("backward_tokens") or 0)


def _mean(values: Sequence[float | None]) -> float | None:
    return None if None in values else sum(each or 0.0 for each in values) / len(values)


def deviations(passes: Sequence[PassCost]) -> tuple[str, ...]:
    """The worst, in words: those in forward passes first, since seconds hold what else the machine did."""
    worst = sorted((each.deviation for each in passes), reverse=True) + sorted(
        (each.delay for each in passes), reverse=True
    )
    return tuple(words for _, words in worst if words)[:NAMED]
