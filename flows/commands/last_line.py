"""How a command that fails ends: one line on stderr, and for what nobody foresaw the place of its traceback."""

from __future__ import annotations

import atexit
import os
import sys
from typing import NoReturn

from foretune.flows.commands.terminal import flush, write_error, write_traceback
from foretune.storage.errors import StorageFault, failure_line, out_of_memory

LONGEST_SAID = 1000
"""Characters of an unforeseen error, so that the place of its traceback is still on the line."""


def fail(message: str, status: int) -> NoReturn:
    """End the process with this line and exit status."""
    write_error(message)
    leave(status)


def leave(status: int) -> NoReturn:
    """End the process with this status.

    Prefect keeps it until every event of the run was sent, and tries each for ten seconds: with a server that is known
    to be gone nothing waits for that.
    """
    told = sys.modules.get("foretune.tasks.engine.announcements")
    if told is not None and told.server_gone():
        flush()
        atexit._run_exitfuncs()  # what is temporary goes, as ever
        os._exit(status)
    sys.exit(status)


def _server_lost(error: BaseException) -> bool:
    announcements = sys.modules.get("foretune.tasks.engine.announcements")
    return announcements is not None and isinstance(error, announcements.ServerLost)


def unforeseen(error: BaseException) -> str:
    """What the error says; where its line does not explain itself, also where the traceback is.

    With FORETUNE_DEBUG in the environment the traceback goes to stderr instead.
    """
    from foretune.storage.tracebacks import keep_traceback, traceback_text
    from foretune.tasks.engine.invariants import BrokenInvariant
    from foretune.tasks.engine.time_limits import OverTime

    line = failure_line(error)
    if isinstance(error, StorageFault | BrokenInvariant | OverTime) or out_of_memory(error) or _server_lost(error):
        return line
    if os.environ.get("FORETUNE_DEBUG"):
        write_traceback(traceback_text(error))
        return line
    kept = keep_traceback(error)
    return f"{line[:LONGEST_SAID]}; the traceback is in {kept}" if kept else line
