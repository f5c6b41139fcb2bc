"""What a run says while it goes: its own events, and the same as Prefect events, where automations can match them."""

from __future__ import annotations

import math
from typing import Any

from prefect.context import FlowRunContext, TaskRunContext
from prefect.events import emit_event

from foretune.storage.events import EventLog
from foretune.storage.runs import Run

ANNOUNCED = {
    "pass_started": "foretune.pass.started",
    "pass_finished": "foretune.pass.finished",
    "pass_failed": "foretune.pass.failed",
    "signal": "foretune.signal",
    "run_finished": "foretune.run.finished",
}
"""Types of event that Prefect is told of, and its name for them; steps and progress stay in events.jsonl."""

MATCHED = ("task", "name", "severity", "status")
"""Fields that automations can match on, as labels of the resource."""


def announce(run: Run, type: str, **fields: Any) -> None:
    """Append an event to the run's log; inside a Prefect run, Prefect is told as well."""
    EventLog.of(run).emit(type, **fields)
    if type not in ANNOUNCED or not (TaskRunContext.get() or FlowRunContext.get()):
        return  # outside of a run Prefect would start a server to tell it to
    labels = {f"foretune.{name}": str(fields[name]) for name in MATCHED if name in fields}
    resource = {"prefect.resource.id": f"foretune.run.{run.run_id}", "prefect.resource.name": run.run_id, **labels}
    payload = {name: _sendable(value) for name, value in fields.items()}
    emit_event(event=ANNOUNCED[type], resource=resource, payload=payload)


def _sendable(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
