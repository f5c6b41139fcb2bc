"""Commands on a root in a bucket whose S3 lies, is late or hangs up: the contract holds, and then all is as it was."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from foretune.storage.artifacts import NAMED
from tests.hostile.attempts import World, run_here
from tests.hostile.conftest import finished_run
from tests.hostile.contract import Outcome, faults
from tests.storage.conftest import FaultyProxy
from tests.storage.test_lying_s3 import TROUBLES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("HOSTILE_SECONDS"),
        reason="takes minutes: `make hostile` asks for it, and tests/storage/test_lying_s3.py asks what commands rest on",
    ),
]

COMMANDS = [["runs"], ["report", "latest"], ["lineage", "latest"], ["compare", "latest", "latest"], ["watch", "latest"],
            ["gc", "--keep-last", "1"], ["export", "latest", "exported"], ["clean", "latest", "-o", "c.jsonl", "--drop-worst", "1"],
            ["whatif", "latest", "--set", "training.epochs=1,3"], ["plan", "REQUEST"]]  # fmt: skip


def alone(outcome: Outcome) -> Outcome:
    """Without what is said of manifests, each of which is a fault of its own; of many no more than a few are named."""
    lines = outcome.err.splitlines(keepends=True)
    named = [line for line in lines if "counted as absent" in line]
    assert len(named) <= NAMED
    return replace(outcome, err="".join(line for line in lines if line not in named))


def test_no_lie_of_s3_is_believed_or_breaks_the_contract(
    world: World,
    faulty_s3: FaultyProxy,
    s3_root: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("foretune.storage.contents.RACE_PATIENCE", 0.5)
    inputs = tmp_path / "inputs"
    request = finished_run(world.healthy, inputs, s3_root)

    def ended(command: list[str], number: int) -> Any:
        folder = tmp_path / str(number)
        folder.mkdir(exist_ok=True)
        words = [word.replace("REQUEST", str(request)) for word in command]
        environment = {"FORETUNE_CACHE": str(folder / "cache")}
        return run_here([*words, "--root", s3_root, "--quiet"], environment, folder)

    number = 0
    for trouble in TROUBLES:
        for part in ("runs/", "artifacts/", "foretune.json"):
            for command in COMMANDS:
                number += 1
                faulty_s3.faults.clear()
                faulty_s3.inject(TROUBLES[trouble], times=100, method="GET", part=part)
                outcome = ended(command, number)
                found = faults(alone(outcome))
                assert not found, (trouble, part, command, outcome.status, outcome.line[:300], found)
    faulty_s3.faults.clear()
    for number_after, command in enumerate(COMMANDS):
        outcome = ended(command, 10_000 + number_after)
        assert outcome.status == 0, (command, outcome.line)
