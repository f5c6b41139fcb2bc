"""Generated attempts of every kind: a few seconds each in `make test`, minutes each in `make hostile`."""

from __future__ import annotations

import os

import pytest

from tests.hostile.attempts import World
from tests.hostile.campaign import QUICK, SECONDS, share, try_kind
from tests.hostile.kinds import KINDS
from tests.hostile.record import keep

pytestmark = pytest.mark.slow

TOTAL = float(os.environ.get(SECONDS) or QUICK)
SEED = int(os.environ.get("HOSTILE_SEED") or 0)


@pytest.mark.parametrize("kind", KINDS)
def test_generated_attempts_keep_the_contract(world: World, kind: str):
    tally = try_kind(world, kind, share(kind, TOTAL), SEED)
    keep(tally.as_dict())
    assert tally.tried
    assert not tally.failed, "\n".join(tally.as_dict()["left"])
