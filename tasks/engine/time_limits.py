"""Time limits of a pass. Prefect's own cannot end a task that was submitted to a thread; this one can.

A timer raises an exception in the pass's thread, which meets it between two steps of Python: a pass spends its time
in many short calls of torch, not in one long one. Waiting for a device does not count.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TypeVar

Result = TypeVar("Result")

IMPORT_SECONDS = 0.2
"""How often to look again whether an import that stands in the way has ended."""

_minutes: ContextVar[float | None] = ContextVar("minutes", default=None)
_clocks = threading.local()
_running: set[Clock] = set()


class OverTime(RuntimeError):
    """A pass computed longer than the request allows; trying again would take as long."""


class _Expired(BaseException):
    """Raised in the pass's thread; not an Exception, so that no library takes it for one of its own."""


class Stopped(BaseException):
    """The run that a pass computes for was stopped."""


class Clock:
    """Counts down in a thread of its own and raises in the thread that made it; infinite seconds never end."""

    def __init__(self, seconds: float) -> None:
        self._left, self._thread = seconds, threading.get_ident()
        self.stopped = False
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._since = 0.0

    def start(self) -> None:
        with self._lock:
            self._since = time.monotonic()
            self._timer = threading.Timer(min(self._left, threading.TIMEOUT_MAX), self._expire)
            self._timer.daemon = True
            self._timer.start()

    def end(self) -> None:
        """Raise now, or when the clock goes on."""
        with self._lock:
            self.stopped, self._left = True, 0.0
            if self._timer is not None:
                self._timer.cancel()
                self._timer = threading.Timer(0.0, self._expire)
                self._timer.daemon = True
                self._timer.start()

    def stop(self) -> None:
        """After this nothing is raised any more."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
                self._left = max(0.0, self._left - (time.monotonic() - self._since))

    def _expire(self) -> None:
        with self._lock:
            if self._timer is None:
                return
            if _importing(self._thread):  # torch's first import does not survive an exception
                self._timer = threading.Timer(IMPORT_SECONDS, self._expire)
                self._timer.daemon = True
                self._timer.start()
            else:
                self._timer = None
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread), ctypes.py_object(_Expired))


def _importing(thread: int) -> bool:
    frame = sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_globals.get("__name__") == "importlib._bootstrap":
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def pass_minutes(minutes: float | None) -> Iterator[None]:
    """Inside the block, and in tasks submitted there, a pass may compute for so long; None: without a limit."""
    token = _minutes.set(minutes)
    try:
        yield
    finally:
        _minutes.reset(token)


def within_time(compute: Callable[[], Result]) -> Result:
    """`compute()`. Raises OverTime when it takes longer than `pass_minutes` allows."""
    minutes = math.inf if (given := _minutes.get()) is None else given
    clock = _clocks.own = Clock(60 * minutes)
    _running.add(clock)
    try:
        clock.start()
        try:
            return compute()
        finally:
            clock.stop()
            _clocks.own = None
    except _Expired:
        if clock.stopped:
            raise Stopped from None
        raise OverTime(
            f"not done after {minutes:g} minutes; raise runtime.pass_minutes, or lower shards.max_rows where the pass "
            "works on a shard"
        ) from None
    finally:
        _running.discard(clock)


def stop_passes() -> None:
    """End every pass that computes in this process: the engine that waits for their threads can end then."""
    for clock in list(_running):
        clock.end()


@contextlib.contextmanager
def uncounted() -> Iterator[None]:
    """The pass waits for something that another pass holds: its clock stands still."""
    clock: Clock | None = getattr(_clocks, "own", None)
    if clock is not None:
        clock.stop()
    try:
        yield
    finally:
        if clock is not None:
            clock.start()
