"""Foreign data is unpacked in a child process of limited memory and time: a lie in it costs the child, not the machine.

A limit is a resource limit of the kernel where there are such (Linux; macOS keeps those on time), and everywhere a
clock that kills the child. The child hears the end of its input when its parent is gone, however that ended.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import IO

CPU, MEMORY = "FORETUNE_CHILD_CPU_SECONDS", "FORETUNE_CHILD_MEMORY_BYTES"

ALONE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}
"""Threads and pools reserve address space, which is what the limit counts."""


@dataclass
class Child:
    """A running child with its pipes."""

    process: subprocess.Popen[bytes]
    gives: IO[bytes]  # what it is sent
    takes: IO[bytes]  # what it answers
    errors: IO[bytes]
    _over: bool = field(default=False)

    @contextlib.contextmanager
    def within(self, seconds: float) -> Generator[None]:
        """Kill the child when the block takes longer; whoever reads from it then finds the end of its answers."""
        clock = threading.Timer(seconds, self._kill)
        clock.daemon = True
        clock.start()
        try:
            yield
        finally:
            clock.cancel()

    def _kill(self) -> None:
        self._over = True
        self.process.kill()

    def end(self) -> str:
        """Why it ended early, in words; waits for it."""
        status = self.process.wait()
        if self._over or -status in _numbers("SIGXCPU", "SIGPROF", "SIGALRM"):
            return "it takes too long"
        return "it needs too much memory" if -status in _numbers("SIGKILL", "SIGSEGV", "SIGABRT") else "it crashed"


def _numbers(*names: str) -> set[int]:
    import signal

    return {int(getattr(signal, name)) for name in names if hasattr(signal, name)}


@contextlib.contextmanager
def confined(module: str, *arguments: str, memory: int, cpu_seconds: float) -> Generator[Child]:
    """A Python child that runs `module`, which calls `keep_within_limits` before anything else; killed at the end."""
    limits = {CPU: str(max(1, round(cpu_seconds))), MEMORY: str(memory)}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],  # -P: no module out of the folder that one happens to be in
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | ALONE | limits,
        start_new_session=True,  # Ctrl-C is for the parent, which ends it
    )
    assert process.stdin and process.stdout and process.stderr
    try:
        yield Child(process, process.stdin, process.stdout, process.stderr)
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(OSError):
                pipe.close()


def keep_within_limits() -> None:
    """In the child: what its parent allows. Nothing where the system has no such limits."""
    try:
        import resource
    except ImportError:  # Windows: the parent's clock alone
        return
    seconds, memory = int(os.environ[CPU]), int(os.environ[MEMORY])
    for kind, most in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, memory), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(ValueError, OSError):  # macOS refuses a limit on address space
            hard = resource.getrlimit(kind)[1]
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(kind, (most, hard))
