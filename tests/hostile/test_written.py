"""Every attempt that is written by hand ends as its table says, within the contract."""

from __future__ import annotations

import os

import pytest

from tests.hostile.attempts import Case, World
from tests.hostile.campaign import SECONDS, Tally
from tests.hostile.contract import Outcome
from tests.hostile.record import keep
from tests.hostile.written import THEMES
from tests.hostile.written.attempt import Written

pytestmark = pytest.mark.slow

LONG = bool(os.environ.get(SECONDS))
EVERY = 12
"""In `make test` one in so many is tried; `make hostile` tries all."""


def attempted(world: World, written: Written) -> tuple[Outcome, list[str]]:
    def prepare(case: Case) -> list[str]:
        case.environment = dict(written.environment)
        return written.prepare(case)

    outcome, faults = world.attempt(prepare, written.own_root, written.process)
    if written.status >= 0 and outcome.status != written.status:
        faults.append(f"status {outcome.status}, not {written.status}")
    if written.said not in outcome.err:
        faults.append(f"does not say {written.said!r}")
    return outcome, faults


@pytest.mark.parametrize("theme", THEMES)
def test_written_attempts_end_as_they_should(world: World, theme: str):
    names = list(THEMES[theme])
    tally = Tally(f"written: {theme}")
    for name in names if LONG else names[::EVERY]:
        tally.add(name, *attempted(world, THEMES[theme][name]))
    keep(tally.as_dict())
    assert not tally.failed, "\n".join(tally.as_dict()["left"])


def test_there_are_three_hundred_of_them():
    assert sum(map(len, THEMES.values())) >= 300
