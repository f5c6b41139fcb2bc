"""The tiny request cut down, for tests of what runs a simulation and not of what it tells."""

from __future__ import annotations

from pathlib import Path

from foretune.flows.request import load_request, to_yaml

LEAN = (
    "sae=null",
    "dataset.preferences=null",
    "dataset.probes=null",
    "behaviour.enabled=false",
    "answers.rows=0",
    "residual_change.when=never",
    "influence.solver.when=ranking",
    "influence.replays.runs=16",
)
"""Half of the tasks, and a third of the time: no concepts, no suites, no answers, no solve beside the replays."""


def made_lean(request: Path) -> Path:
    """The same file, with these settings in it."""
    request.write_text(to_yaml(load_request(str(request), list(LEAN))))
    return request


def as_words(*settings: str) -> list[str]:
    """Settings as a command takes them."""
    return [word for each in settings for word in ("--set", each)]
