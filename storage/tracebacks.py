"""Where the traceback of an unforeseen error is kept: a file of the temporary folder, without secrets."""

from __future__ import annotations

import os
import tempfile
import traceback

from foretune.storage.display import shown


def traceback_text(error: BaseException) -> str:
    """The error with its causes as Python prints it, redacted and visible."""
    return shown("".join(traceback.format_exception(error)))


def keep_traceback(error: BaseException) -> str | None:
    """Path of a new file that only this user can read; None where none can be written."""
    try:
        handle, path = tempfile.mkstemp(prefix="foretune-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(traceback_text(error))
    except OSError:
        return None
    return path
