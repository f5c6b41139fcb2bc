"""Ctrl-C and SIGTERM end the command within seconds, whatever its threads compute, and leave no process behind.

A pass computes in torch in a thread that no signal reaches, and an engine waits for its threads. So a thread of our
own reads the signal from the interpreter's wake-up pipe, marks the runs as stopped, ends the processes that were
started for them and then this one. What is half written stays a draft, as after kill -9: the same command goes on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
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

ENGINE_SECONDS = 10.0
"""As above where an engine of Prefect's is told of the signal: it has its own states to report first."""

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


@contextlib.contextmanager
def heard_beside_the_engine() -> Iterator[None]:
    """Inside the block SIGTERM marks the runs as stopped, beside what an engine of Prefect's does about it.

    The engine raises TerminationSignal in the main thread, which may be lost in a library's callback or held up by
    threads that compute; a worker waits for 30 seconds and kills, and nothing of the run said that it was stopped.
    The engine's handler stays in its place, since a cancellation is told from a crash by it.
    """
    if threading.current_thread() is not threading.main_thread() or _started or not _has_a_handler():
        yield  # the command's watcher does it, or nobody asked for more than Python's default
        return
    reads, writes = _pipe()
    threading.Thread(target=_mark_at, args=(reads, signal.SIGTERM), name="signals", daemon=True).start()
    before = signal.set_wakeup_fd(writes.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writes.close()  # ends the thread


def _has_a_handler() -> bool:
    return callable(signal.getsignal(signal.SIGTERM))


def _mark_at(reads: socket.socket, number: int) -> None:
    with reads:
        while (heard := reads.recv(1)) and heard[0] != number:
            continue
        if heard:
            _end_in(ENGINE_SECONDS)
            _mark()


def stop_at_signals() -> None:
    """From now on a signal ends this process with status 130; one that the caller ignores stays ignored (nohup)."""
    if _started or threading.current_thread() is not threading.main_thread():
        return
    ours = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    ours = [number for number in ours if signal.getsignal(number) is not signal.SIG_IGN]
    reads, writes = _pipe()
    watcher = threading.Thread(target=_wait, args=(reads, ours), name="signals", daemon=True)
    watcher.start()
    _started.append(watcher)
    _kept.append(writes)
    signal.set_wakeup_fd(writes.fileno(), warn_on_full_buffer=False)
    for number in ours:
        signal.signal(number, _left_to_the_watcher)


def _pipe() -> tuple[socket.socket, socket.socket]:
    """Where a byte is waited for, and where the interpreter writes it: sockets, since Windows takes nothing else."""
    reads, writes = socket.socketpair()
    writes.setblocking(False)
    return reads, writes


_kept: list[socket.socket] = []  # else the socket is closed with its last reference


def _left_to_the_watcher(number: int, frame: object) -> None:
    """The wake-up pipe has the signal already; KeyboardInterrupt in the main thread would only wait for the others."""


def _wait(reads: socket.socket, ours: list[int]) -> None:
    while True:
        number = reads.recv(1)
        if not number or number[0] in ours:
            break
    _stop()


def _end_in(seconds: float) -> None:
    last = threading.Timer(seconds, os._exit, (INTERRUPTED,))
    last.daemon = True
    last.start()


def _stop() -> None:
    _end_in(LAST_SECONDS)
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
