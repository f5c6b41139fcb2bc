"""Code that runs in a process of its own, and what a person reads of an error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import storage


def child(code: str, **options) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(Path(storage.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60, **options
    )


def one_line(caught: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)
