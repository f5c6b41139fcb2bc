"""Turns: how many passes of a run compute at once. A pass that waits for its inputs holds none.

Prefect's thread pool gives a thread to every task in the order of submission, and a task whose inputs are not made
yet waits in its thread. With as many threads as passes may compute, two that wait would keep a third from starting.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextvars import ContextVar

_turns: ContextVar[threading.Semaphore | None] = ContextVar("turns", default=None)


@contextlib.contextmanager
def at_once(passes: int) -> Iterator[None]:
    """Inside the block, and in tasks submitted there, so many passes compute at once."""
    token = _turns.set(threading.Semaphore(passes))
    try:
        yield
    finally:
        _turns.reset(token)


def turn() -> contextlib.AbstractContextManager[object]:
    """Held while a pass computes; free where nothing bounds them."""
    return _turns.get() or contextlib.nullcontext()
