"""How many tokens went forward and backward through a model: the work of a pass, counted where it is done.

A forward counts 1 per token, a backward through the whole model 2, whatever is adapted: the convention by which a
real run is counted as well. Under autocast a token counts half.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator
from dataclasses import dataclass


@dataclass(eq=False)
class Work:
    """Tokens, padding included, since it is computed too."""

    forward_tokens: float = 0
    backward_tokens: float = 0

    @property
    def forward_equivalents(self) -> float:
        """Tokens times their cost in forwards."""
        return self.forward_tokens + 2 * self.backward_tokens

    def forward(self, tokens: float) -> None:
        self.forward_tokens += tokens

    def backward(self, tokens: float) -> None:
        self.backward_tokens += tokens


_of_thread = threading.local()


def work_here() -> Work:
    """What this thread counts into; into nothing that is read, outside of `counted_work`."""
    return getattr(_of_thread, "work", None) or Work()


@contextlib.contextmanager
def counted_work() -> Generator[Work]:
    """Counts the work of this thread inside the block."""
    outer = getattr(_of_thread, "work", None)
    _of_thread.work = work = Work()
    try:
        yield work
    finally:
        _of_thread.work = outer
