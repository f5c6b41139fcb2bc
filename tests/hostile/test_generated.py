"""Generated attempts of every kind: a few each in `make test`, more than a hundred each in `make hostile`."""

from __future__ import annotations

import os
import random
import threading

import hypothesis
import pytest
from hypothesis import HealthCheck, given

from tests.hostile.attempts import World
from tests.hostile.campaign import (
    ATTEMPTS,
    QUICK_ATTEMPTS,
    QUICK_SECONDS,
    SECONDS,
    SHARE,
    SHARE_OF_TIME,
    share,
    try_kind,
)
from tests.hostile.kinds import KINDS
from tests.hostile.kinds.attempt import Attempt
from tests.hostile.record import keep

pytestmark = pytest.mark.slow

TIME = float(os.environ.get(SECONDS) or QUICK_SECONDS)
COUNT = float(os.environ.get(ATTEMPTS) or QUICK_ATTEMPTS)
SEED = int(os.environ.get("HOSTILE_SEED") or 0)


@pytest.mark.parametrize("kind", KINDS)
def test_generated_attempts_keep_the_contract(world: World, kind: str):
    tally = try_kind(world, kind, share(kind, COUNT, SHARE), share(kind, TIME, SHARE_OF_TIME), SEED)
    keep(tally.as_dict())
    assert tally.tried
    assert not tally.failed, "\n".join(tally.as_dict()["left"])


def test_a_thread_that_draws_at_random_breaks_no_strategy():
    over, drawn = threading.Event(), 0

    def draws() -> None:  # as the ping of a websocket does that an earlier test left open
        while not over.wait(0.0005):
            random.random()

    thread = threading.Thread(target=draws)
    thread.start()
    try:

        @hypothesis.settings(max_examples=200, database=None, deadline=None, suppress_health_check=list(HealthCheck))
        @given(KINDS["model JSON"]())
        def each(attempt: Attempt) -> None:
            nonlocal drawn
            drawn += 1

        each()
    finally:
        over.set()
        thread.join()
    assert drawn >= 200
