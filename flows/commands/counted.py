"""How far a command is that computes in this process: `copying 120 of 540 MB, about 20 s left`, on stderr."""

from __future__ import annotations

import time
from typing import Any

from foretune.flows.commands.remaining import duration
from foretune.flows.commands.terminal import Terminal
from foretune.flows.interruption import when_stopped

EVERY_SECONDS = 15.0
"""Between two lines where stderr is no terminal; what is quicker says nothing there."""
SURE_SECONDS = 1.0
"""Before this much has passed, no rest is estimated."""


class Counted:
    """Called with what is done, how much of it and of how much; a moving line where stderr is a terminal."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal, self.words = terminal, ""
        self._progress = terminal.progress()
        self._line: Any = None
        self._what, self._since, self._told_at = "", 0.0, time.monotonic()
        self._stopping = when_stopped(self._progress.stop)  # else the terminal's cursor stays hidden

    def __enter__(self) -> Counted:
        self._stopping.__enter__()
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        self._stopping.__exit__(None, None, None)

    def __call__(self, what: str, done: float, total: float, unit: str = "") -> None:
        """`what` is a verb, as in `copying`; another one starts the estimate anew."""
        now = time.monotonic()
        if what != self._what:
            self._what, self._since = what, now
        self.words = f"{done:,.0f} of {total:,.0f}{unit and ' '}{unit}{_rest(now - self._since, done, total)}"
        if self.terminal.moving:
            if self._line is None:
                self._line = self._progress.add_task(what, total=total, note="")
            self._progress.update(self._line, description=what, completed=done, total=total, note=self.words)
        elif now - self._told_at >= EVERY_SECONDS:
            self.terminal.beside(f"{what} {self.words}")
            self._told_at = now


def _rest(spent: float, done: float, total: float) -> str:
    if spent < SURE_SECONDS or not 0 < done < total:
        return ""
    return f", about {duration(spent * (total - done) / done)} left"
