"""Datasets: rows of a local or S3 file, and one clear line for each way in which a file can be wrong."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import math
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

from foretune.storage.digests import digest_of, file_digest
from foretune.storage.errors import BadInput, parser_line
from foretune.storage.packed import BROKEN, PACKED, most_unpacked, opened, packing
from foretune.storage.parquet_rows import parquet_rows
from foretune.storage.parts import (
    TRAIN,
    dataset_address,
    entries_at,
    folder_and_pattern,
    part_files,
    split_of,
    told_rows,
)
from foretune.storage.places import Place, localise

Row = dict[str, Any]

LONGEST = 16 * 2**20
"""Characters of a line: a row of 1 M tokens has about 5 M, of two texts 10 M."""
DEEPEST = 64
"""Levels of lists and objects in a row: what walks a row later is recursive, and Python's stack has 1,000 frames."""


def read_rows(uri: str) -> list[Row]:
    """Every row of a dataset as one dict a row: a .jsonl, .json, .csv (each also .gz or .zst), .parquet or .arrow file,
    or a folder or glob of the parts of one, joined in their order.

    JSON is a list of objects, or an object with one field that is such a list. Empty lines are no rows. Raises
    BadInput, with the line where there is one, for what is missing, empty, of an unknown kind, not text, or not
    rows of named fields; and for parts that are not all there.
    """
    address = dataset_at(uri)
    files = part_files(address, KNOWN)
    rows = [row for file in files for row in _file_rows(file)]
    if not rows:
        raise BadInput(f"{uri}: the dataset is empty; give at least one row")
    if len(files) > 1 or address != uri:
        told = told_rows(address, split_of(address))
        if told is not None and told != len(rows):
            raise BadInput(
                f"{uri}: {len(rows):,} rows in {len(files)} files, but {told:,} by the dataset_info beside them; copy "
                "them again, or remove that file"
            )
    return rows


def dataset_at(uri: str, split: str = TRAIN) -> str:
    """Where the rows of one dataset lie: the file that `uri` names, or the file or parts of a split below it."""
    place = Place(uri)
    folder = place.is_folder() and not place.exists()
    return dataset_address(uri, KNOWN, split) if folder or folder_and_pattern(uri)[1] is not None else uri


def _file_rows(uri: str) -> list[Row]:
    path = _file(uri)
    packed = packing(path.name)
    name = path.name.lower().removesuffix(packed)
    if name.endswith(COLUMNAR) and not packed:
        rows = parquet_rows(uri, path, most_unpacked(path))
    else:
        reader = next((READERS[kind] for kind in READERS if name.endswith(kind)), None)
        if reader is None:
            raise BadInput(f"{uri}: unknown kind of file {_extension(path)!r}; known are {KNOWN_SAID}")
        rows = _text_rows(uri, path, reader, packed)
    deep = next((number for number, row in enumerate(rows, start=1) if too_deep(row)), None)
    if deep is not None:
        raise BadInput(f"{uri}: row {deep} is nested more than {DEEPEST} levels deep; flatten it")
    return rows


def dataset_digest(uri: str) -> str:
    """sha256 of the file's bytes, 64 hex digits; of several parts that of their digests in order."""
    digests = [file_digest(_file(file)) for file in part_files(dataset_at(uri), KNOWN)]
    return digests[0] if len(digests) == 1 else digest_of(digests)


def dataset_bytes(uri: str) -> int:
    """Size of a dataset's files; 0 for what is not there."""
    if folder_and_pattern(uri)[1] is None and not Place(uri).is_folder():
        entry = Place(uri).entry()
        return entry.size if entry is not None else 0
    return sum(entry.size for entry in entries_at(uri, KNOWN))


def _file(uri: str) -> Path:
    path = localise(uri)
    if path.is_dir():
        raise BadInput(f"{uri}: is a folder; give one file ({KNOWN_SAID})")
    return path


def _extension(path: Path) -> str:
    return "".join(path.suffixes[-2:]) if packing(path.name) else path.suffix


def _text_rows(uri: str, path: Path, reader: Callable[[str, io.TextIOBase], Iterator[Row]], packed: str) -> list[Row]:
    with faults_of(uri, path):
        if packed:
            _count(path, packed)
        # A byte order mark, which spreadsheets write, would become part of the first field's name.
        with opened(path, packed) as stream, io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
            return list(reader(uri, text))


@contextlib.contextmanager
def faults_of(uri: str, path: Path) -> Generator[None, None, None]:
    """BadInput for what goes wrong while a file is read: no text, no whole gzip file, no permission."""
    packed = packing(path.name)
    try:
        yield
    except UnicodeDecodeError as error:
        line = _undecodable_line(path, packed)
        raise BadInput(f"{uri}: line {line} is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    except BROKEN as error:
        raise BadInput(f"{uri}: not a whole gzip file ({error}); copy it again") from error
    except OSError as error:
        if packed == ".zst" and error.errno is None:
            raise BadInput(f"{uri}: not a whole zstd file ({error}); copy it again") from error
        raise BadInput(f"{uri}: cannot be read ({error.strerror}); check its permissions") from error


def _count(path: Path, packed: str) -> None:
    """Unpack to the end before a row is kept: the rows of a bomb of short lines take 20 times its bytes."""
    with opened(path, packed) as stream:
        while stream.read1(2**20):  # pyright: ignore[reportAttributeAccessIssue] - gzip's and io's have it
            pass


def _undecodable_line(path: Path, packed: str) -> int:
    with opened(path, packed) as stream:
        for number, line in enumerate(stream, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    raise AssertionError(f"{path} changed while it was read")


def _lines(uri: str, text: io.TextIOBase) -> Iterator[str]:
    for number in itertools.count(1):
        line = text.readline(LONGEST + 1)
        if not line:
            return
        if len(line) > LONGEST:
            raise BadInput(
                f"{uri}: line {number} has more than {LONGEST // 2**20} million characters; split the row, or drop it"
            )
        yield line


def too_deep(row: Row) -> bool:
    level = [value for value in row.values() if isinstance(value, dict | list)]
    depth = 1
    while level:
        if depth == DEEPEST:
            return True
        inner = (each.values() if isinstance(each, dict) else each for each in level)
        level = [value for values in inner for value in values if isinstance(value, dict | list)]
        depth += 1
    return False


def _jsonl_rows(uri: str, text: io.TextIOBase) -> Iterator[Row]:
    lines = enumerate(_lines(uri, text), start=1)
    for number, line in lines:
        if not line.strip():
            continue
        if number == 1 and line.lstrip().startswith("["):  # a JSON array under this name, which `datasets` reads
            rest = "".join(each for _, each in lines)
            yield from _objects(uri, _json(uri, line + rest, None))
            return
        yield _object(uri, number, _json(uri, line.rstrip(), number))


def _json_rows(uri: str, text: io.TextIOBase) -> Iterator[Row]:
    content = text.read()
    first, _, rest = content.lstrip().partition("\n")
    if rest.strip() and _is_object(first):  # JSON Lines under this name, which `datasets` writes and reads
        yield from _jsonl_rows(uri, io.StringIO(content))
        return
    yield from _objects(uri, _json(uri, content, None))


def _is_object(line: str) -> bool:
    """Whether a line is a whole JSON object by itself."""
    if not line.startswith("{"):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _objects(uri: str, whole: Any) -> Iterator[Row]:
    """The rows of a list of objects, or of an object with one field that is such a list."""
    if isinstance(whole, dict):
        lists = [name for name, value in whole.items() if isinstance(value, list)]
        if len(lists) != 1:
            found = f"lists in {', '.join(lists)}" if lists else "no list"
            values = [item for name in lists for item in whole[name][:1]]
            columns = values and len(lists) == len(whole) and not any(isinstance(item, dict) for item in values)
            by_column = whole and (columns or all(isinstance(value, dict) for value in whole.values()))
            remedy = "give a list of objects or one field with a list"
            if by_column:
                remedy = "it is written column by column: write it row by row (pandas: orient='records')"
            raise BadInput(f"{uri}: an object with {found}; {remedy}")
        whole = whole[lists[0]]
    if not isinstance(whole, list):
        raise BadInput(f"{uri}: {kind_of(whole)} at the top; give a list of objects")
    for number, row in enumerate(whole, start=1):
        if not isinstance(row, dict):
            raise BadInput(f"{uri}: item {number} is {kind_of(row)}; every row must be an object")
        yield row


def _csv_rows(uri: str, text: io.TextIOBase) -> Iterator[Row]:
    csv.field_size_limit(LONGEST)  # the module's 128 KiB is less than one long document
    reader = csv.reader(_lines(uri, text), strict=True)
    try:
        header = next(reader, [])
        _check_delimiter(uri, header)
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            raise BadInput(f"{uri}: line 1 names {', '.join(map(repr, twice))} twice; rename one of them")
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise BadInput(
                    f"{uri}: line {reader.line_num} has {len(row)} fields, the header has {len(header)}; "
                    "quote fields that hold commas or line breaks"
                )
            yield dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise BadInput(f"{uri}: line {reader.line_num} is not CSV ({error}); mend that line") from error


def _check_delimiter(uri: str, header: list[str]) -> None:
    """BadInput where the one name of the header is several, with another sign between them."""
    for delimiter, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if len(header) == 1 and delimiter in header[0]:
            raise BadInput(f"{uri}: fields are separated by {name} ({delimiter!r}); write the file with commas")


READERS = {".jsonl": _jsonl_rows, ".ndjson": _jsonl_rows, ".json": _json_rows, ".csv": _csv_rows}
COLUMNAR = (".parquet", ".arrow")
KNOWN_SAID = f"{', '.join((*READERS, *COLUMNAR))}; text also as {' or '.join(PACKED)}"
KNOWN = (*COLUMNAR, *(kind + packed for kind in READERS for packed in ("", *PACKED)))


def _json(uri: str, text: str, line: int | None) -> Any:
    try:
        return json.loads(text, parse_constant=refuse, parse_float=finite)
    except json.JSONDecodeError as error:
        where = f"line {line or error.lineno}, column {error.colno}"
        raise BadInput(f"{uri}: {where} is not JSON ({error.msg}); mend that line") from error
    except (ValueError, RecursionError) as error:
        where = f"line {line}" if line else "the file"
        raise BadInput(f"{uri}: {where} is not JSON ({parser_line(error)}); mend it") from error


def finite(number: str) -> float:
    value = float(number)
    return value if math.isfinite(value) else refuse(number)


def refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON value")


def _object(uri: str, line: int, value: Any) -> Row:
    if not isinstance(value, dict):
        raise BadInput(f"{uri}: line {line} is {kind_of(value)}; every row must be an object")
    return value


def kind_of(value: Any) -> str:
    """What a value is, in JSON's words; a value that JSON has no word for, by its type's name."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    names |= {int: "a number", float: "a number"}
    return names.get(type(value), f"a {type(value).__name__}")
