"""How a flow ends: the answer and its report, or what, where and the remedy; a line that is its state and its log."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any, TypeVar

from prefect.context import FlowRunContext
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from foretune.flows.environment import show_logs_safely
from foretune.storage.display import one_line
from foretune.storage.errors import BadInput, StorageFault, failure_line, panics_as_errors
from foretune.storage.redaction import redact_error
from foretune.storage.runs import RESULT, Run
from foretune.tasks.engine.announcements import ServerLost, server_gone, server_lost, tell
from foretune.tasks.engine.invariants import BrokenInvariant
from foretune.tasks.engine.time_limits import OverTime
from foretune.tasks.report.address import report_address

logger = logging.getLogger(__name__)

Flow = TypeVar("Flow", bound=Callable[..., Any])

BAD_INPUT = "BadInput"
"""Name of the state of a run whose request cannot be met; any other failure is `Failed`."""

EXPLAINED = (BadInput, StorageFault, BrokenInvariant, OverTime, ServerLost)
"""Errors whose one line says it all; of any other, the log keeps the traceback."""

ENGINE = ("prefect.flow_runs", "prefect.engine")
REPEATED = ("Engine execution exited with unexpected", "Execution of flow run")


class _WithoutRepetition(logging.Filter):
    """Prefect logs the traceback of a flow that returned a failed state: the state and the log say it already."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and str(record.msg).startswith(REPEATED))


_without_repetition = _WithoutRepetition()


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
                    return _answered(function(*args, **kwargs))
            except Exception as error:
                if FlowRunContext.get() is None:  # called as a plain function
                    raise
                redact_error(error)  # Prefect stores and logs it
                line = _line(error)
                get_run_logger().error("%s", line, exc_info=None if isinstance(error, EXPLAINED) else error)
                resource = {"prefect.resource.id": event.rpartition(".")[0], "foretune.error": type(error).__name__}
                tell(event, resource, {"error": line})
                engine_log_silenced()
                return Failed(name=BAD_INPUT if isinstance(error, BadInput) else None, message=line, data=error)

        # Prefect reads parameters and their types from the function itself, which does not know this module's names.
        body.__signature__ = inspect.signature(function, eval_str=True)  # type: ignore[attr-defined]
        body.__annotations__ = inspect.get_annotations(function, eval_str=True)
        return body  # type: ignore[return-value]

    return decorate


def _answered(result: Any) -> Any:
    """In a flow run, the state of one whose simulation has a result; anything else as it is."""
    if FlowRunContext.get() is None or not isinstance(result, dict) or "summary" not in result:
        return result
    run = Run(result["request"]["runtime"]["root"], result["run_id"])
    line = one_line(f"Should I train? {result['summary']['answer']}. Report: {report_address(run)}")
    get_run_logger().info("%s", line)
    return Completed(message=line, data=result)


def stored_result(run: Run) -> dict[str, Any] | None:
    """The result of a run, or None while it has none."""
    return run.read_result() if (run.place / RESULT).exists() else None


def finished(
    run: Run, flow: Callable[[], dict[str, Any]], stored: Callable[[Run], dict[str, Any] | None] = stored_result
) -> dict[str, Any]:
    """What a flow that makes `run` gives; where Prefect alone failed, what of it is `stored`. ServerLost where a named
    server went away before anything was."""
    try:
        return flow()
    except Exception as error:
        kept = None if isinstance(error, EXPLAINED) else stored(run)
        if kept is None:
            lost = server_lost(run.run_id, error)
            if lost is not None:
                raise lost from error
            raise
        if not server_gone():  # which was said when it was found
            logger.warning(
                "%s: finished and stored; the Prefect server was not told that the run ended (%s)",
                *(run.run_id, failure_line(error)),
            )
        return kept


def _line(error: Exception) -> str:
    """The pass and its message; the error's type where the message does not explain itself."""
    message = str(error) if isinstance(error, EXPLAINED) else failure_line(error)
    notes = getattr(error, "__notes__", ()) if isinstance(error, EXPLAINED) else ()
    return one_line(": ".join([*notes, message]))


def engine_log_silenced() -> None:
    """Keep the engine from logging a failed state that the flow of this process returned on purpose."""
    for name in ENGINE:
        logging.getLogger(name).addFilter(_without_repetition)  # adding it again changes nothing
