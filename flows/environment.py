"""What must be set before Prefect or a Hugging Face library is imported, in every entry point of ours."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

from foretune.storage.display import shown
from foretune.storage.tracebacks import traceback_text

QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500",  # beside 429, 502 and 503: a server's hiccup fails no run
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "TQDM_DISABLE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16",  # of 1,024: 0.7 GB of products in bfloat16 over rows of many lengths
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else a warning on machines without a GPU
}


def prepare(command_line: bool = False) -> None:
    """Telemetry off and room for a slow start; on the command line errors are ours to print, in one line."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    show_logs_safely()
    if command_line:
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
        _one_line_warnings()
        os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
        os.environ.setdefault("PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL")  # of events to a server that is gone
        os.environ.setdefault("PREFECT_LOGGING_TO_API_ENABLED", "false")
        # The ephemeral server writes tracebacks to our stderr when it is stopped while it still records events.
        os.environ.setdefault("PREFECT_SERVER_LOGGING_LEVEL", "CRITICAL")
        os.environ.setdefault("PREFECT_LOGGING_ROOT_LEVEL", "CRITICAL")  # its database library does the same
        for room in ("flows", "tasks", "storage"):
            logging.getLogger(f"foretune.{room}").setLevel(logging.WARNING)


LIBRARIES = (
    "foretune", "prefect", "httpx", "httpcore", "botocore", "aiobotocore", "s3fs", "fsspec", "aiohttp", "asyncio",
    "huggingface_hub", "transformers", "sae_lens", "peft", "torch", "py.warnings", "ray",
)  # fmt: skip
"""Whose log records are shown as text from outside is; a program that imports us keeps its own as they are."""


def show_logs_safely() -> None:
    """From now on no record of ours and of the libraries below us holds a secret or a hidden character.

    A record is made once and goes to every handler: terminal, Prefect's API, a file. Calling it again changes nothing.
    """
    before = logging.getLogRecordFactory()
    if getattr(before, "shows_safely", False):
        return

    def made(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = before(*args, **kwargs)
        if record.name.partition(".")[0] in LIBRARIES or record.name in LIBRARIES:
            _show(record)
        return record

    setattr(made, "shows_safely", True)  # noqa: B010 - no attribute that a type checker knows
    logging.setLogRecordFactory(made)


def _show(record: logging.LogRecord) -> None:
    try:
        said = record.getMessage()
    except (TypeError, ValueError):  # arguments that do not fit: logging says so itself
        return
    safe = shown(said)
    if safe != said:
        record.msg, record.args = safe, None
    if record.exc_info and record.exc_info[1] is not None:
        record.exc_text = traceback_text(record.exc_info[1]).rstrip()  # formatters keep what is there


class _OneLine(logging.Handler):
    """A warning of ours on the terminal, as every other line there."""

    def emit(self, record: logging.LogRecord) -> None:
        from foretune.flows.commands.terminal import write_error

        write_error(record.getMessage())


def _one_line_warnings() -> None:
    """On the command line a warning is one of our lines or none: those of libraries are for their developers."""
    if not os.environ.get("FORETUNE_DEBUG"):
        warnings.simplefilter("ignore")
        warnings.showwarning = lambda *_args, **_named: None
        logging.lastResort = logging.NullHandler()  # pyright: ignore[reportAttributeAccessIssue]
    ours = logging.getLogger("foretune")
    if not any(isinstance(handler, _OneLine) for handler in ours.handlers):
        ours.addHandler(_OneLine(logging.WARNING))
        ours.propagate = False
