"""What a campaign found, beside where it ran: hostile.json and environment.json."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WRITE = "HOSTILE_WRITE"
"""Variable: the results replace those that are stored."""


def keep(tally: dict[str, Any]) -> None:
    """Add what a kind gave, where the results are to be stored."""
    if not os.environ.get(WRITE):
        return
    file = HERE / "hostile.json"
    with open(HERE / "record.py") as lock:  # of two workers one at a time
        fcntl.flock(lock, fcntl.LOCK_EX)
        _add(file, tally)


def _add(file: Path, tally: dict[str, Any]) -> None:
    kept = json.loads(file.read_text()) if file.exists() else []
    kept = sorted([each for each in kept if each["kind"] != tally["kind"]] + [tally], key=lambda each: each["kind"])
    file.write_text(json.dumps(kept, indent=1) + "\n")
    from tests.benchmarks.environment import environment

    (HERE / "environment.json").write_text(json.dumps(environment(), indent=1) + "\n")
