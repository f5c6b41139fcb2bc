"""Ctrl-C and SIGTERM end the command within seconds, whatever its threads compute, and leave no process behind.

A pass computes in torch in a thread that no signal reaches, and an engine waits for its threads. So a thread of our
own reads the signal from the interpreter's wake-up pipe, marks the runs as stopped, ends the processes that were
started for them and then this one. What is half written stays a draft, as after kill -9: the same command goes on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

INTERRUPTED = 130
"""Exit status of a command that was stopped, by Ctrl-C or by SIGTERM."""

STOPPED = "stopped; run the same command again to go on where it ended"
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")

MARKING_SECONDS = 2.0
"""For the last events; a disk or an S3 that hangs must not keep the process."""
LAST_SECONDS = 4.0
"""After a signal the process is gone, whatever else goes wrong."""

_at_stop: list[Callable[[], None]] = []
_started: list[threading.Thread] = []


@contextlib.contextmanager
def when_stopped(do: Callable[[], None]) -> Iterator[None]:
    """Inside the block a command that is stopped calls `do()` first; the last block's first."""
    _at_stop.append(do)
    try:
        yield
    finally:
        _at_stop.remove(do)


def stop_at_signals() -> None:
    """From now on a signal ends this process with status 130; one that the caller ignores stays ignored (nohup)."""
    if _started or threading.current_thread() is not threading.main_thread():
        return
    ours = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    ours = [number for number in ours if signal.getsignal(number) is not signal.SIG_IGN]
    wakened, wakes = _pipe()
    watcher = threading.Thread(target=_wait, args=(wakened, ours), name="signals", daemon=True)
    watcher.start()
    _started.append(watcher)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    for number in ours:
        signal.signal(number, _left_to_the_watcher)


def _pipe() -> tuple[Callable[[], bytes], int]:
    """How to wait for a byte, and where the interpreter writes it: a socket, since Windows takes nothing else."""
    import socket

    reads, writes = socket.socketpair()
    writes.setblocking(False)
    _kept.extend((reads, writes))
    return lambda: reads.recv(1), writes.fileno()


_kept: list[object] = []  # else the sockets are closed with their last reference


def _left_to_the_watcher(number: int, frame: object) -> None:
    """The wake-up pipe has the signal already; KeyboardInterrupt in the main thread would only wait for the others."""


def _wait(wakened: Callable[[], bytes], ours: list[int]) -> None:
    while True:
        number = wakened()
        if not number or number[0] in ours:
            break
    _stop()


def _stop() -> None:
    last = threading.Timer(LAST_SECONDS, os._exit, (INTERRUPTED,))
    last.daemon = True
    last.start()
    try:
        _mark()
        _end_children()
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os.write(2, f"foretune: {STOPPED}\n".encode())  # sys.stderr may be held by the thread that writes to it
    finally:
        os._exit(INTERRUPTED)


def _mark() -> None:
    def each() -> None:
        for do in reversed(_at_stop):
            with contextlib.suppress(Exception):  # the process ends, whether or not this can be said
                do()

    marking = threading.Thread(target=each, daemon=True)
    marking.start()
    marking.join(MARKING_SECONDS)


def _end_children() -> None:
    """Engine server, Ray's processes, children that read foreign data: asked once, then killed."""
    import psutil

    children = psutil.Process().children(recursive=True)
    for child in children:
        with contextlib.suppress(psutil.Error):
            child.terminate()
    _, left = psutil.wait_procs(children, timeout=0.5)
    for child in {*left, *psutil.Process().children(recursive=True)}:
        with contextlib.suppress(psutil.Error):
            child.kill()
    psutil.wait_procs(left, timeout=0.5)
