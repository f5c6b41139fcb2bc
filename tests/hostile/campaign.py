"""A campaign: attempts of a kind for so long, and what of them broke the contract."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given

from tests.hostile.attempts import World
from tests.hostile.kinds import KINDS, Attempt

SECONDS = "HOSTILE_SECONDS"
"""Variable: how long all kinds together may take."""
QUICK = 28.0
EXAMPLES = 100_000
SHARE = {"environment": 2.5, "stored files": 2.0, "requests": 1.5, "rows": 1.5, "command lines": 1.5}
"""Of the time, against one of the other kinds."""


@dataclass
class Tally:
    """Attempts of one kind."""

    kind: str
    tried: int = 0
    failed: list[tuple[str, str, list[str]]] = field(default_factory=list)  # what, ending, faults
    statuses: dict[int, int] = field(default_factory=dict)

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


def share(kind: str, seconds: float) -> float:
    """Of all seconds, those of a kind."""
    return seconds * SHARE.get(kind, 1.0) / sum(SHARE.get(each, 1.0) for each in KINDS)


def try_kind(world: World, kind: str, seconds: float, seed: int) -> Tally:
    """Attempts of a kind until the time is over; none ends the campaign."""
    tally, until = Tally(kind), time.monotonic() + seconds

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=EXAMPLES,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(KINDS[kind]())
    def each(attempt: Attempt) -> None:
        if time.monotonic() > until:
            raise _Over
        outcome, faults = world.attempt(attempt.prepare, attempt.own_root, attempt.process, attempt.heals)
        tally.tried += 1
        tally.statuses[outcome.status] = tally.statuses.get(outcome.status, 0) + 1
        if faults:
            tally.failed.append((attempt.what, f"{outcome.status} {outcome.line[:200]}", faults))

    with contextlib.suppress(_Over):
        each()
    return tally


class _Over(BaseException):
    """The time is over."""
