"""The shape of an event: a line of events.jsonl is one when the fields that its readers take are of their types."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

LONGEST_LINE = 16 * 2**20
"""Bytes of a line. The largest event, a step of a model of a thousand modules, has some 30 KB."""


class Event(BaseModel):
    """What every event has; of a type that this version does not know, nothing else is read."""

    model_config = ConfigDict(extra="allow", strict=True)

    run_id: str
    time: str
    type: str
    source: str


class PassStarted(Event):
    task: str
    label: str


class PassFinished(PassStarted):
    seconds: float
    cached: bool


class PassFailed(PassStarted):
    error: str


class Step(Event):
    task: str
    step: int
    loss: float | None
    max_grad_norm: float | None


class Progress(Event):
    task: str
    done: int
    total: int | None = None


class Signal(Event):
    name: str
    severity: str


class ArtifactDamaged(Event):
    error: str


class RunFinished(Event):
    status: str
    error: str | None = None
    answer: str | None = None


TYPES: dict[str, type[Event]] = {
    "pass_started": PassStarted,
    "pass_finished": PassFinished,
    "pass_failed": PassFailed,
    "step": Step,
    "progress": Progress,
    "signal": Signal,
    "artifact_damaged": ArtifactDamaged,
    "run_finished": RunFinished,
}


def event_in(line: bytes) -> dict[str, Any] | None:
    """The event on a line; None for half a line, for what is no JSON, has no type, or a field of another type."""
    if len(line) > LONGEST_LINE:
        return None
    try:
        event = json.loads(line)
        if not isinstance(event, dict) or "type" not in event:
            return None
        wrong = _faults(event) - {"missing"}
    except (ValueError, RecursionError):
        return None
    return None if wrong else event


def is_whole(event: dict[str, Any]) -> bool:
    """Whether every field that an event of its type has is there."""
    return not _faults(event)


def _faults(event: dict[str, Any]) -> set[str]:
    type = event.get("type")
    try:
        (TYPES.get(type, Event) if isinstance(type, str) else Event).model_validate(event)
    except ValidationError as error:
        return {fault["type"] for fault in error.errors(include_url=False, include_input=False, include_context=False)}
    return set()
