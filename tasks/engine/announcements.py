"""What a run says while it goes: its own events, and the same as Prefect events, where automations can match them."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from typing import Any

import httpx
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext, TaskRunContext
from prefect.events import emit_event
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, get_current_settings, temporary_settings
from tenacity import Retrying, stop_after_attempt, wait_exponential

from foretune.storage.display import one_line, shown, shown_tree
from foretune.storage.errors import failure_line
from foretune.storage.events import EventLog
from foretune.storage.runs import Run
from foretune.tasks.engine import lineage

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""To tell the server; it may be starting again. What is told is stored already: a run does not fail by it."""

BRIEFLY = 2
"""Times that a server which is named is asked again for what fails no run: 6 s. Prefect's five times are a minute."""
ENDING = 3
"""Times that it is told again how a run ended, once it cannot be reached: 14 s."""

_unreachable: set[str] = set()
"""Servers of which it was said."""

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


class ServerLost(RuntimeError):
    """The named Prefect server went away before the run had a result, and what was left of it needs a server."""


def announce(run: Run, type: str, **fields: Any) -> None:
    """Append an event to the run's log; inside a Prefect run Prefect is told as well, and whom OpenLineage names."""
    EventLog.of(run).emit(type, **fields)
    lineage.happened(run, type, fields)
    if type not in ANNOUNCED or not (TaskRunContext.get() or FlowRunContext.get()):
        return  # outside of a run Prefect would start a server to tell it to
    labels = {f"foretune.{name}": str(fields[name]) for name in MATCHED if name in fields}
    resource = {"prefect.resource.id": f"foretune.run.{run.run_id}", "prefect.resource.name": run.run_id, **labels}
    tell(ANNOUNCED[type], resource, fields)


def tell(event: str, resource: dict[str, str], payload: dict[str, Any]) -> None:
    """An event of Prefect's, its text without secrets and all of it to be seen."""
    sendable = {name: _sendable(value) for name, value in payload.items()}
    labels = {name: one_line(value, LONGEST_LABEL) for name, value in resource.items()}
    try:
        emit_event(event=event, resource=labels, payload=shown_tree(sendable))
    except Exception as error:
        _untold(labels.get("prefect.resource.name", ""), f"event {event}", error)


def publish_markdown(key: str, markdown: str, run_id: str) -> None:
    """An artifact of Prefect's; what of it is not our own text has gone through `escape`."""
    try:
        attempts = 1 if server_gone() else ATTEMPTS
        for attempt in Retrying(stop=stop_after_attempt(attempts), wait=wait_exponential(max=8), reraise=True):
            with attempt, asked_briefly():
                create_markdown_artifact(key=key, markdown=shown(markdown), description=one_line(run_id))
    except Exception as error:
        _untold(run_id, f"artifact {key}", error)


def name_flow_run(name: str) -> None:
    """The flow run around the caller is called so from now on; outside of one nothing is."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or context.flow_run.name == name:
        return
    try:
        with asked_briefly(), get_client(sync_client=True) as client:
            client.set_flow_run_name(context.flow_run.id, name)
        context.flow_run.name = name
    except Exception as error:
        _untold(name, "name of the flow run", error)


@contextlib.contextmanager
def asked_briefly() -> Iterator[None]:
    """Inside the block a server that is named is asked again for seconds. One of our own is started again where it
    dies, for which Prefect's minute is right."""
    settings = get_current_settings()
    if not settings.api.url:
        yield
        return
    retries = 0 if server_gone() else min(BRIEFLY, settings.client.max_retries)
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: retries}):
        yield
    _unreachable.discard(settings.api.url)  # it answers again


def server_gone() -> bool:
    """Whether it was said that the named server cannot be reached."""
    return get_current_settings().api.url in _unreachable


def say_unreachable(run_id: str, error: Exception) -> None:
    """Where the named server cannot be reached, say so once; the engine then asks it for seconds too.

    A deployment's run is left its minute: its end must reach a server that is started again.
    """
    settings, context = get_current_settings(), FlowRunContext.get()
    if not isinstance(error, httpx.TransportError) or not settings.api.url or server_gone():
        return
    _unreachable.add(settings.api.url)
    if context is None or context.flow_run is None or context.flow_run.deployment_id is None:
        settings.client.max_retries = min(ENDING, settings.client.max_retries)
    logger.warning(
        "%s: the Prefect server %s cannot be reached (%s); the run goes on and is stored, but that server does not "
        "hear how it ends; start it again to be shown the next run",
        *(one_line(run_id), one_line(settings.api.url), one_line(failure_line(error))),
    )


def server_lost(run_id: str, error: Exception) -> ServerLost | None:
    """What `error` means where it comes of a named server that cannot be reached; None for any other."""
    url = get_current_settings().api.url
    if not isinstance(error, httpx.TransportError) or not url:
        return None
    return ServerLost(
        f"{one_line(run_id)}: the Prefect server {one_line(url)} went away, and the run needs one to go on "
        f"({one_line(failure_line(error))}); start it again, or unset PREFECT_API_URL, and give the command again: "
        "what was computed is stored"
    )


def _untold(run_id: str, what: str, error: Exception) -> None:
    if server_gone():  # which was said when it was found
        return
    logger.warning(
        "%s: the Prefect server was not told: %s (%s); what the run made is stored all the same",
        *(one_line(run_id), what, one_line(failure_line(error))),
    )


def escape(text: object) -> str:
    """Text from outside that Markdown and HTML show as it is, on one line."""
    escaped = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\`*_{}[]()#+-!|~" else c for c in escaped)


def _sendable(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
