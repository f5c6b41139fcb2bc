"""A campaign: so many attempts of a kind, or for so long, and what of them broke the contract."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given

from tests.hostile.attempts import World
from tests.hostile.contract import Outcome
from tests.hostile.kinds import KINDS
from tests.hostile.kinds.attempt import Attempt

SECONDS = "HOSTILE_SECONDS"
"""Variable: processor time of this process and its children for all kinds together, at most."""
ATTEMPTS = "HOSTILE_ATTEMPTS"
"""Variable: attempts of all kinds together, at most."""
QUICK_SECONDS, QUICK_ATTEMPTS = 24.0, 280.0
"""In `make test`."""
SHARE = {"environment": 0.5, "stored files": 0.75}
"""Of attempts, against one of the other kinds."""
SHARE_OF_TIME = {"environment": 4.0, "stored files": 1.5}
"""A process takes 3 s, a root of its own 0.3 s, any other attempt 0.1 s."""


@dataclass
class Tally:
    """Attempts of one kind."""

    kind: str
    tried: int = 0
    failed: list[tuple[str, str, list[str]]] = field(default_factory=list)  # what, ending, faults
    statuses: dict[int, int] = field(default_factory=dict)

    def add(self, what: str, outcome: Outcome, faults: list[str]) -> None:
        self.tried += 1
        self.statuses[outcome.status] = self.statuses.get(outcome.status, 0) + 1
        if faults:
            self.failed.append((what, f"{outcome.status} {outcome.line[:300]}", faults))

    def as_dict(self) -> dict[str, Any]:
        left = [f"{what} -> {ending}: {'; '.join(faults)}"[:600] for what, ending, faults in self.failed]
        held = self.tried - len(self.failed)
        statuses = {str(status): count for status, count in sorted(self.statuses.items())}
        return {
            "kind": self.kind,
            "tried": self.tried,
            "held": held,
            "failed": len(self.failed),
            "statuses": statuses,
            "left": left,
        }


def share(kind: str, whole: float, shares: dict[str, float]) -> float:
    """Of the attempts or seconds of all kinds, those of one."""
    return whole * shares.get(kind, 1.0) / sum(shares.get(each, 1.0) for each in KINDS)


def processor_seconds() -> float:
    """Of this process and of its children that have ended: what else the machine does takes nothing from a kind."""
    return sum(os.times()[:4])


def try_kind(world: World, kind: str, attempts: float, seconds: float, seed: int) -> Tally:
    """Attempts of a kind until there are enough or the time is over, at least one; none ends the campaign."""
    tally, until = Tally(kind), processor_seconds() + seconds

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=max(round(attempts), 1) + 1,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(KINDS[kind]())
    def each(attempt: Attempt) -> None:
        if tally.tried and (tally.tried >= attempts or processor_seconds() > until):
            raise _Over
        outcome, faults = world.attempt(attempt.prepare, attempt.own_root, attempt.process, attempt.heals)
        tally.add(attempt.what, outcome, faults)

    with contextlib.suppress(_Over):
        each()
    return tally


class _Over(BaseException):
    """It was enough."""
