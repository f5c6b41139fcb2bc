"""The findings as a table: a row each, in the order of the dataset's rows, under ids that stay."""

from __future__ import annotations

import hashlib
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

    def words(values: list[str]) -> Any:
        return pa.array(values, pa.string()).dictionary_encode()

    columns = {
        "rule": words(chosen),
        "category": words([active[rule].category for rule in chosen]),
        "severity": words([active[rule].severity for rule in chosen]),
        "row": pa.array(at, mask=~some),
        "line": pa.array(lines, mask=lines == 0),
        "part": words(parts),
        "start": pa.array(starts[order]),
        "end": pa.array(np.array(found["end"], np.int32)[order]),
        "what": words([found["what"][position] for position in order]),
        "sample_id": pa.array(ids, pa.string()),
        "fingerprint": pa.array(keys, pa.string()),
    }
    return pa.table(columns).cast(findings_schema())


def fingerprint(rule: str, sample_id: str, part: str, start: int) -> str:
    """What a finding is known by in a baseline: 20 hex digits, the same wherever its row stands."""
    return hashlib.sha256(f"{rule}|{sample_id}|{part}|{start}".encode()).hexdigest()[:20]
