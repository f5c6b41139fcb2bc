"""The temporary Prefect server that a command starts where none is named: it runs for as long as the command does.

What a run computes needs no server, and Prefect's client asks one that has answered before again for a minute. So a
temporary server that dies (out of memory, killed by hand) is started again on its port, over the same database.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator

EVERY_SECONDS = 0.5
MOST = 3
"""Times that it is started again: one that dies more often has a reason that will not go away."""


@contextlib.contextmanager
def temporary_server_kept() -> Iterator[None]:
    """Inside the block a temporary server of this process that ends is started again."""
    over = threading.Event()
    thread = threading.Thread(target=_keep, args=(over,), name="temporary server", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _keep(over: threading.Event) -> None:
    left = MOST
    while left and not over.wait(EVERY_SECONDS):
        for server in _ended():
            # A command that is stopped ends its children first and is gone within a second.
            if over.wait(2 * EVERY_SECONDS + 1.0):
                return
            left -= 1
            with contextlib.suppress(OSError):
                server.server_process = server._run_uvicorn_command()


def _ended() -> list:
    """Servers that should run and do not. Prefect keeps them in a dictionary of its own and has no other way to ask."""
    loaded = sys.modules.get("prefect.server.api.server")
    known = getattr(loaded, "SubprocessASGIServer", None)  # None too while another thread imports it
    servers = list(known._instances.values()) if known else []
    return [each for each in servers if each.running and each.server_process and each.server_process.poll() is not None]
