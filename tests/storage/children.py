"""Code that runs in a process of its own, and what a person reads of an error."""

from __future__ import annotations

import subprocess
import sys

import pytest


def child(code: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, **options)


def one_line(caught: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)
