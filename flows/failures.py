"""How a flow that fails ends: what, where and the remedy in one line, as the state, in the log and as an event."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any, TypeVar

from prefect.context import FlowRunContext
from prefect.logging import get_run_logger
from prefect.states import Failed

from foretune.flows.environment import show_logs_safely
from foretune.storage.display import one_line
from foretune.storage.errors import BadInput, StorageFault, failure_line, panics_as_errors
from foretune.storage.redaction import redact_error
from foretune.tasks.engine.announcements import tell
from foretune.tasks.engine.invariants import BrokenInvariant
from foretune.tasks.engine.time_limits import OverTime

Flow = TypeVar("Flow", bound=Callable[..., Any])

BAD_INPUT = "BadInput"
"""Name of the state of a run that was asked for something that cannot be; any other failure is `Failed`."""

EXPLAINED = (BadInput, StorageFault, BrokenInvariant, OverTime)
"""Errors whose one line says it all; of any other, the log keeps the traceback."""

ENGINE = ("prefect.flow_runs", "prefect.engine")
SAID_TWICE = ("Engine execution exited with unexpected", "Execution of flow run")


class _SaidOnce(logging.Filter):
    """Prefect logs the traceback of a flow that returned a failed state: the state and the log say it already."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and str(record.msg).startswith(SAID_TWICE))


_said_once = _SaidOnce()


def ending_in_one_line(event: str) -> Callable[[Flow], Flow]:
    """Decorates a flow's function: an error becomes a failed state with one line, and an event of this name.

    Whoever calls the flow for its result still gets the error itself raised.
    """

    def decorate(function: Flow) -> Flow:
        @functools.wraps(function)
        def body(*args: Any, **kwargs: Any) -> Any:
            show_logs_safely()
            try:
                with panics_as_errors():
                    return function(*args, **kwargs)
            except Exception as error:
                if FlowRunContext.get() is None:  # called as a plain function
                    raise
                redact_error(error)  # Prefect stores and logs it
                line = _line(error)
                get_run_logger().error("%s", line, exc_info=None if isinstance(error, EXPLAINED) else error)
                resource = {"prefect.resource.id": event.rpartition(".")[0], "foretune.error": type(error).__name__}
                tell(event, resource, {"error": line})
                said_by_its_state()
                return Failed(name=BAD_INPUT if isinstance(error, BadInput) else None, message=line, data=error)

        # Prefect reads parameters and their types from the function itself, which does not know this module's names.
        body.__signature__ = inspect.signature(function, eval_str=True)  # type: ignore[attr-defined]
        body.__annotations__ = inspect.get_annotations(function, eval_str=True)
        return body  # type: ignore[return-value]

    return decorate


def _line(error: Exception) -> str:
    """Which pass, and what it says; the error's type where the text does not explain itself."""
    said = str(error) if isinstance(error, EXPLAINED) else failure_line(error)
    notes = getattr(error, "__notes__", ()) if isinstance(error, EXPLAINED) else ()
    return one_line(": ".join([*notes, said]))


def said_by_its_state() -> None:
    """This process's flow returns a failed state on purpose; the engine has nothing to add to it."""
    for name in ENGINE:
        logging.getLogger(name).addFilter(_said_once)  # adding it again changes nothing
