"""The findings as a table: a row each, in the order of the dataset's rows, under ids that stay."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

    from foretune.tasks.quality.lint_whole import Whole
    from foretune.tasks.quality.settings import QualitySettings


@dataclass(frozen=True)
class Linting:
    """What a dataset's rows say: the findings, a row each, and the counts."""

    findings: pa.Table  # columns as in `findings_schema`
    summary: dict[str, Any]


def findings_schema() -> pa.Schema:
    """Columns of the findings; null where a finding is about the dataset as a whole."""
    import pyarrow as pa

    return pa.schema(
        {
            "rule": pa.dictionary(pa.int16(), pa.string()),
            "category": pa.dictionary(pa.int16(), pa.string()),
            "severity": pa.dictionary(pa.int16(), pa.string()),
            "row": pa.int64(),  # from 0
            "line": pa.int64(),  # from 1; null where the file has none
            "part": pa.dictionary(pa.int16(), pa.string()),  # prompt, completion, rejected, messages or row
            "start": pa.int32(),  # in characters of the part
            "end": pa.int32(),
            "what": pa.dictionary(pa.int32(), pa.string()),  # the phrase or the pattern's name, never a secret
            "sample_id": pa.string(),
            "fingerprint": pa.string(),
        }
    )


def findings_table(whole: Whole, settings: QualitySettings) -> pa.Table:
    """Sorted by row, then rule, then place."""
    import numpy as np
    import pyarrow as pa

    active, found = settings.active(), whole.found
    names = sorted(set(found["rule"]))
    number = {name: position for position, name in enumerate(names)}
    rules = np.array([number[name] for name in found["rule"]], np.int16)
    rows, starts = np.array(found["row"], np.int64), np.array(found["start"], np.int32)
    order = np.lexsort((starts, rules, rows))
    some = rows[order] >= 0
    at = rows[order]
    ids = [whole.ids[row].tobytes().hex() if row >= 0 else None for row in at.tolist()]
    chosen = [names[rule] for rule in rules[order]]
    parts = [found["part"][position] for position in order]
    lines = np.where(some, whole.lines[at], 0)
    keys = [
        fingerprint(rule, sample_id or "", part, start)
        for rule, sample_id, part, start in zip(chosen, ids, parts, starts[order].tolist(), strict=True)
    ]

    columns = {
        "rule": _words(chosen, "int16"),
        "category": _words([active[rule].category for rule in chosen], "int16"),
        "severity": _words([active[rule].severity for rule in chosen], "int16"),
        "row": _numbers(at, pa.int64(), some),
        "line": _numbers(lines, pa.int64(), lines != 0),
        "part": _words(parts, "int16"),
        "start": _numbers(starts[order], pa.int32()),
        "end": _numbers(np.array(found["end"], np.int32)[order], pa.int32()),
        "what": _words([found["what"][position] for position in order], "int32"),
        "sample_id": _texts(ids),
        "fingerprint": _texts(keys),
    }
    types = findings_schema()
    arrays = [columns[field.name] for field in types]
    return pa.Table.from_arrays(arrays, schema=types)


def _words(values: Sequence[str], index: str) -> pa.Array:
    """A dictionary in the order in which its words come; a cast of its indices would import pyarrow.compute."""
    import numpy as np
    import pyarrow as pa

    numbers = {word: number for number, word in enumerate(dict.fromkeys(values))}
    at = np.array([numbers[value] for value in values], index)
    return pa.DictionaryArray.from_arrays(_numbers(at, pa.type_for_alias(index)), _texts(list(numbers)))


def _numbers(values: Any, kind: pa.DataType, valid: Any = None) -> pa.Array:
    """`pa.array` would import pandas, which takes longer than vetting a thousand rows."""
    import numpy as np
    import pyarrow as pa

    known = None if valid is None else pa.py_buffer(np.packbits(valid, bitorder="little").tobytes())
    return pa.Array.from_buffers(kind, len(values), [known, pa.py_buffer(np.ascontiguousarray(values))])


def _texts(values: Sequence[str | None]) -> pa.Array:
    import numpy as np
    import pyarrow as pa

    encoded = [b"" if value is None else value.encode("utf-8", "replace") for value in values]
    ends = np.zeros(len(encoded) + 1, np.int32)
    np.cumsum([len(value) for value in encoded], out=ends[1:])
    valid = np.packbits(np.array([value is not None for value in values], bool), bitorder="little").tobytes()
    buffers = [pa.py_buffer(valid), pa.py_buffer(ends), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.string(), len(encoded), buffers)


def fingerprint(rule: str, sample_id: str, part: str, start: int) -> str:
    """What a finding is known by in a baseline: 20 hex digits, the same wherever its row stands."""
    return hashlib.sha256(f"{rule}|{sample_id}|{part}|{start}".encode()).hexdigest()[:20]
