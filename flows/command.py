"""The entry point of the `foretune` command: ready for a signal before anything that takes long is imported."""

from __future__ import annotations

import contextlib
import gc
import os
import signal

# Until `stop_at_signals` is there, which itself takes imports: no traceback, the same status and line.
with contextlib.suppress(ValueError):  # not the main thread
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: _stopped())


def _stopped() -> None:
    os.write(2, b"foretune: stopped; run the same command again to go on where it ended\n")
    os._exit(130)


def main() -> None:
    gc.disable()  # imports make objects that stay: looking them through takes a sixth of a short command's time
    from foretune.flows.interruption import stop_at_signals

    stop_at_signals()
    from foretune.flows.cli import main as command

    gc.freeze()
    gc.enable()
    command()
