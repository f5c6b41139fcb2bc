"""What must be set before Prefect or a Hugging Face library is imported, in every entry point of ours."""

from __future__ import annotations

import logging
import os

QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "TQDM_DISABLE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else a warning on machines without a GPU
}


def prepare(command_line: bool = False) -> None:
    """Telemetry off and room for a slow start; on the command line errors are ours to print, in one line."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if command_line:
        os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
        os.environ.setdefault("PREFECT_LOGGING_TO_API_ENABLED", "false")
        # The ephemeral server writes tracebacks to our stderr when it is stopped while it still records events.
        os.environ.setdefault("PREFECT_SERVER_LOGGING_LEVEL", "CRITICAL")
        os.environ.setdefault("PREFECT_LOGGING_ROOT_LEVEL", "CRITICAL")  # its database library does the same
        for room in ("flows", "tasks", "storage"):
            logging.getLogger(f"foretune.{room}").setLevel(logging.WARNING)
