"""How fast a machine took gradients: from the passes that took them, which is what a real run's seconds rest on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

GRADIENT_PASS = "landscape_shard train"
"""One forward and backward over every training row: what an epoch of the real run costs at least."""
TOGETHER = 0.1  # of a pass's seconds: one that has less of its own ended with the pass before it


@dataclass(frozen=True)
class Pace:
    """Seconds per token and forward pass, a backward counted as two forwards."""

    mean: float
    fastest: float  # of the parts
    slowest: float
    parts: int


def pace_of(events: Iterable[Mapping[str, Any]]) -> Pace | None:
    """Of the gradient passes among a run's events; None where there are none.

    Passes of one device wait for each other with their clocks running, so that their seconds add up to more than what
    went by. A part's own time is that between the end of the one before it, or its start where that is later, and its
    end. What else the machine did is in it: hence the fastest and the slowest part.
    """
    passes = [e for e in events if e["type"] == "pass_finished" and e["label"].startswith(GRADIENT_PASS)]
    spent = sorted((seconds_at(e), float(e["seconds"]), equivalents(e)) for e in passes if equivalents(e))
    parts: list[tuple[float, int]] = []
    before = float("-inf")
    for end, seconds, tokens in spent:
        own = end - max(end - seconds, before)
        if parts and own < TOGETHER * seconds:
            own, tokens = own + parts[-1][0], (tokens or 0) + parts[-1][1]
            parts.pop()
        parts.append((own, tokens or 0))
        before = end
    if not parts:
        return None
    rates = [own / tokens for own, tokens in parts]
    mean = sum(own for own, _ in parts) / sum(tokens for _, tokens in parts)
    return Pace(mean, min(rates), max(rates), len(parts))


def equivalents(event: Mapping[str, Any]) -> int | None:
    """Tokens times their cost in forwards; None for a pass that opened no model."""
    if "forward_tokens" not in event:
        return None
    return round(event["forward_tokens"] + 2 * event.get("backward_tokens", 0))


def seconds_at(event: Mapping[str, Any]) -> float:
    """When an event was, in seconds."""
    return datetime.fromisoformat(event["time"]).timestamp()
