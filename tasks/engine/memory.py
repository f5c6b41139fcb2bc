"""Memory of a pass: smaller micro-batches where a device runs out of it, and what was freed given back to the system.

Every aggregate is a sum that is divided once, so the size of a micro-batch moves nothing but rounding.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel

logger = logging.getLogger("foretune")

Result = TypeVar("Result")

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h
HEAP = {M_ARENA_MAX: 1, M_TRIM_THRESHOLD: 2**28, M_MMAP_THRESHOLD: 2**25}
"""Options of glibc's allocator. Larger tensors than the last are mapped by themselves, as glibc would come to do of its
own accord if the one before it were not set."""
SIZES = ("batch_tokens", "graph_tokens")
"""Settings that bound what a device holds at once, and that no result depends on."""


def within_memory(compute: Callable[[dict[str, Any]], Result], arguments: dict[str, Any], label: str) -> Result:
    """`compute(arguments)`, with every micro-batch halved for as long as the device says out of memory.

    Raises the device's own error when the pass has no micro-batches, or when they are down to one token.
    """
    while True:
        try:
            return compute(arguments)
        except Exception as error:
            smaller = halved(arguments) if _out_of_memory(error) else arguments
            if smaller == arguments:
                raise
        # Out of the except block: the error's traceback holds the batch that did not fit.
        sys.modules["torch"].cuda.empty_cache()
        logger.warning("%s: out of memory, once more with micro-batches of half the tokens", label)
        arguments = smaller


def halved(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with the sizes in every setting halved; a micro-batch keeps at least one token."""
    return {name: _halved(value) if isinstance(value, BaseModel) else value for name, value in arguments.items()}


def _halved(settings: BaseModel) -> BaseModel:
    sizes = {name: getattr(settings, name, None) for name in SIZES}
    smaller = {name: max(size // 2, int(name == "batch_tokens")) for name, size in sizes.items() if size is not None}
    return settings.model_copy(update=smaller)


def keep_heap() -> None:
    """From now on the C library keeps what is freed for what is needed next, in one arena for threads that start,
    unless the environment says otherwise; `give_back` returns it.

    glibc gives each thread an arena and keeps what is free in it: four blocks of 16 rows' gradients under autocast in
    each of three threads left 2.7 GB, 2.1 with one, at the same seconds. And it returns the top of a heap as soon as a
    few megabytes are free there: in a bare process the sums and products of a step of the recursion, which makes a
    tensor of every weight anew, took 55 ms over q and v of 135M, and 25 where the heap is kept.
    """
    if not any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        with contextlib.suppress(OSError, AttributeError):  # not glibc
            set_option = ctypes.CDLL(None).mallopt
            for option, value in HEAP.items():
                set_option(option, value)


def give_back() -> None:
    """Let the C library return what is free. glibc keeps it: 1.9 GB after the curvature graph of 8 rows of a 135M
    model, on top of which the next pass comes."""
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)
