"""What a run says while it goes: its own events, and the same as Prefect events, where automations can match them."""

from __future__ import annotations

import math
from typing import Any

from prefect.artifacts import create_markdown_artifact
from prefect.context import FlowRunContext, TaskRunContext
from prefect.events import emit_event

from foretune.storage.display import one_line, shown, shown_tree
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

LONGEST_LABEL = 500
MATCHED = ("task", "name", "severity", "status")
"""Fields that automations can match on, as labels of the resource."""


def announce(run: Run, type: str, **fields: Any) -> None:
    """Append an event to the run's log; inside a Prefect run, Prefect is told as well."""
    EventLog.of(run).emit(type, **fields)
    if type not in ANNOUNCED or not (TaskRunContext.get() or FlowRunContext.get()):
        return  # outside of a run Prefect would start a server to tell it to
    labels = {f"foretune.{name}": str(fields[name]) for name in MATCHED if name in fields}
    resource = {"prefect.resource.id": f"foretune.run.{run.run_id}", "prefect.resource.name": run.run_id, **labels}
    tell(ANNOUNCED[type], resource, fields)


def tell(event: str, resource: dict[str, str], payload: dict[str, Any]) -> None:
    """An event of Prefect's, its text without secrets and all of it to be seen."""
    sendable = {name: _sendable(value) for name, value in payload.items()}
    labels = {name: one_line(value, LONGEST_LABEL) for name, value in resource.items()}
    emit_event(event=event, resource=labels, payload=shown_tree(sendable))


def publish_markdown(key: str, markdown: str, run_id: str) -> None:
    """An artifact of Prefect's; what of it is not our own text has gone through `escape`."""
    create_markdown_artifact(key=key, markdown=shown(markdown), description=one_line(run_id))


def escape(text: object) -> str:
    """Text from outside that Markdown and HTML show as it is, on one line."""
    escaped = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\`*_{}[]()#+-!|~" else c for c in escaped)


def _sendable(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
