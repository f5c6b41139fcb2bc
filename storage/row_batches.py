"""A dataset in batches: JSON Lines as bytes that other processes parse, everything else as rows. Memory is one batch.

Unlike `datasets`, a line that cannot be read is no reason to stop: it comes back as the fault that it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from foretune.storage import datasets
from foretune.storage.datasets import LONGEST, Row
from foretune.storage.errors import BadInput
from foretune.storage.packed import BROKEN, most_unpacked, opened, packing
from foretune.storage.parquet_rows import parquet_batches
from foretune.storage.parts import part_files
from foretune.storage.places import localise

BATCH_BYTES, BATCH_ROWS = 2 * 2**20, 4096


@dataclass(frozen=True)
class Lines:
    """Whole lines of a JSON Lines file."""

    first_line: int  # from 1
    data: bytes


@dataclass(frozen=True)
class Rows:
    """Rows of a file of another kind; `first_line` is unknown."""

    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Unread:
    """A line that is no row, and why."""

    fault: str
    data: bytes


Batch = Lines | Rows
_DECODER = json.JSONDecoder(parse_constant=datasets.refuse, parse_float=datasets.finite)


def row_batches(uri: str, size: int = BATCH_BYTES) -> Iterator[Batch]:
    """The file in order. BadInput, in one line, for what is no dataset at all: missing, empty, of an unknown kind."""
    path = _one_file(uri)
    name = path.name.lower().removesuffix(packing(path.name))
    if path.is_file() and name.endswith((".jsonl", ".ndjson")) and not _is_array(path):
        yield from _lines(uri, path, size)
    elif path.is_file() and path.name.lower().endswith(".parquet"):
        yield from _parquet(uri, path)
    else:
        rows = datasets.read_rows(uri)
        for start in range(0, len(rows), BATCH_ROWS):
            yield Rows(tuple(rows[start : start + BATCH_ROWS]))


def _one_file(uri: str) -> Path:
    """The file of a dataset in one file, on this disk; a folder's path where it is in several."""
    files = part_files(datasets.dataset_at(uri), datasets.KNOWN)
    return localise(files[0]) if len(files) == 1 else Path(uri)


def _parquet(uri: str, path: Path) -> Iterator[Rows]:
    waiting: list[Row] = []
    any_row = False
    for rows in parquet_batches(uri, path, most_unpacked(path)):
        waiting += rows
        any_row = True
        if len(waiting) >= BATCH_ROWS:
            yield Rows(tuple(waiting))
            waiting = []
    if not any_row:
        raise BadInput(f"{uri}: the dataset is empty; give at least one row")
    if waiting:
        yield Rows(tuple(waiting))


def _is_array(path: Path) -> bool:
    with opened(path, packing(path.name)) as stream:
        try:
            return stream.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
        except (OSError, *BROKEN):
            return True  # the other reader says what is wrong with the file


def _lines(uri: str, path: Path, size: int) -> Iterator[Lines]:
    """Chunks that end where a line ends; the reader of a chunk refuses lines that are too long."""
    number, rest = 1, b""
    with datasets.faults_of(uri, path), opened(path, packing(path.name)) as stream:
        while chunk := stream.read(size):
            if number == 1 and not rest:
                chunk = chunk.removeprefix(b"\xef\xbb\xbf")
            end = chunk.rfind(b"\n") + 1
            if not end:
                rest += chunk
                if len(rest) > 4 * LONGEST:
                    raise BadInput(f"{uri}: line {number} has more than {4 * LONGEST // 2**20} MB; split it")
                continue
            data, rest = rest + chunk[:end], chunk[end:]
            yield Lines(number, data)
            number += data.count(b"\n")
    if rest:
        yield Lines(number, rest)
        number += 1
    if number == 1:
        raise BadInput(f"{uri}: the dataset is empty; give at least one row")


def parsed(batch: Batch) -> tuple[list[Row | Unread], list[int]]:
    """Every row, or why it is none, and its line; 0 where a file has none."""
    if isinstance(batch, Rows):
        return list(batch.rows), [0] * len(batch.rows)
    found: list[Row | Unread] = []
    numbers: list[int] = []
    for number, line in enumerate(batch.data.split(b"\n"), start=batch.first_line):
        if line and not line.isspace():
            found.append(_row(line))
            numbers.append(number)
    return found, numbers


def _row(line: bytes) -> Row | Unread:
    if len(line) > LONGEST:
        return Unread(f"more than {LONGEST // 2**20} million characters; split the row, or drop it", line)
    value = _texts(line)
    if value is not None:
        return value
    try:
        value = _DECODER.decode(line.decode())
    except UnicodeDecodeError as error:
        return Unread(f"not UTF-8 text ({error.reason}); save the file as UTF-8", line)
    except json.JSONDecodeError as error:
        return Unread(f"not JSON (column {error.colno}: {error.msg}); mend the line", line)
    except (ValueError, RecursionError) as error:
        return Unread(f"not JSON ({error}); mend the line", line)
    if not isinstance(value, dict):
        return Unread(f"{datasets.kind_of(value)}; every row must be an object", line)
    if datasets.too_deep(value):
        return Unread(f"nested more than {datasets.DEEPEST} levels deep; flatten it", line)
    return value


def _texts(line: bytes) -> Row | None:
    """A flat object of nothing but texts, which orjson reads as Python's decoder does in a third of the time."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return value if type(value) is dict and all(type(each) is str for each in value.values()) else None
