"""A dataset vetted without a model: batches read by as many processes as there are cores, then compared and counted.

What batches hand over is put together in the file's order, so that neither their size nor the number of processes can
be seen in the result. Memory holds arrays of a few hundred bytes a row, never the rows.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from foretune.storage.errors import BadInput
from foretune.storage.places import localise
from foretune.storage.row_batches import BATCH_BYTES, Batch, row_batches
from foretune.tasks.samples.forms import ColumnNames

if TYPE_CHECKING:
    from foretune.tasks.quality.leakage import LeakIndex
    from foretune.tasks.quality.lint_batch import BatchLinter, Linted
    from foretune.tasks.quality.lint_findings import Linting
    from foretune.tasks.quality.settings import QualitySettings

ALONE_BYTES = 8 * 2**20
"""A file of less is read by this process: two others take half a second to start."""
_AHEAD = 2  # batches under way for each process


def lint(
    uri: str,
    settings: QualitySettings,
    columns: ColumnNames | None = None,
    leaks: Sequence[LeakIndex] = (),
    processes: int | None = None,
    batch_bytes: int = BATCH_BYTES,
) -> Linting:
    """Read a dataset once. BadInput where it is none at all; a row that cannot be read is a finding."""
    from foretune.tasks.quality.lint_batch import BatchLinter
    from foretune.tasks.quality.lint_reduction import reduce_lint

    near = any(rule in settings.active() for rule in ("near_duplicate",))
    made = BatchLinter(settings, columns or ColumnNames(), leaks, near)
    if processes is None:
        path = localise(uri)
        small = not path.is_file() or path.stat().st_size < ALONE_BYTES
        processes = 1 if small else min(len(os.sched_getaffinity(0)), 8)
    batches = row_batches(uri, batch_bytes)
    parts = map(made.lint, batches) if processes == 1 else _parallel(batches, made, processes)
    linting = reduce_lint(parts, settings)
    if not linting.summary["rows"]:
        raise BadInput(f"{uri}: the dataset is empty; give at least one row")
    return linting


def _parallel(batches: Iterator[Batch], linter: BatchLinter, processes: int) -> Iterator[Linted]:
    """The batches in their order, read by other processes; few are under way at a time."""
    import multiprocessing
    from concurrent.futures import Future, ProcessPoolExecutor

    own = (linter.settings, linter.columns, linter.leaks, linter.near)
    context = multiprocessing.get_context("spawn")
    waiting: deque[Future[Linted]] = deque()
    with ProcessPoolExecutor(processes, context, _prepare, own) as pool:
        try:
            for batch in batches:
                waiting.append(pool.submit(_lint, batch))
                if len(waiting) >= _AHEAD * processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


_linter: BatchLinter


def _prepare(*own: Any) -> None:
    """In a process of the pool."""
    global _linter
    from foretune.tasks.quality.lint_batch import BatchLinter

    _linter = BatchLinter(*own)


def _lint(batch: Batch) -> Linted:
    return _linter.lint(batch)
