"""What can be mended without judging: exact copies dropped, encodings restored, white space trimmed. Never in place."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from foretune.storage.errors import BadInput
from foretune.storage.row_batches import Unread, parsed, row_batches
from foretune.tasks.quality.encoding import mended, trimmed

ANSWERS = ("completion", "chosen", "rejected", "output", "response", "answer")
"""Columns that are trimmed; in messages, what the assistant says."""


@dataclass(frozen=True)
class Mended:
    """The rows that are left as JSON Lines, and what was changed: how many rows by what."""

    data: bytes
    rows: int
    changes: dict[str, int]


def mended_rows(uri: str) -> Mended:
    """Every row of a dataset, mended. BadInput for a row that cannot be read: nothing is left out silently."""
    changes: Counter[str] = Counter()
    seen: set[bytes] = set()
    lines: list[bytes] = []
    number = 0
    for batch in row_batches(uri):
        for row in parsed(batch)[0]:
            if isinstance(row, Unread):
                raise BadInput(f"{uri}: row {number} is {row.fault}: it cannot be mended; mend or drop it first")
            number += 1
            new = _row(row, changes)
            line = json.dumps(new, ensure_ascii=False, default=str).encode()
            if line in seen:
                changes["exact copies dropped"] += 1
                continue
            seen.add(line)
            lines.append(line + b"\n")
    return Mended(b"".join(lines), len(lines), dict(changes))


def _row(row: dict[str, Any], changes: Counter[str]) -> dict[str, Any]:
    new = _each(row, mended)
    if new != row:
        changes["rows with an encoding mended"] += 1
    cut = {name: _trimmed(name, value) for name, value in new.items()}
    if cut != new:
        changes["rows trimmed"] += 1
    return cut


def _each(value: Any, change: Callable[[str], str]) -> Any:
    """Every text inside of a value changed; a row is at most 64 levels deep."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_each(each, change) for each in value]
    if isinstance(value, dict):
        return {name: _each(each, change) for name, each in value.items()}
    return value


def _trimmed(name: str, value: Any) -> Any:
    if isinstance(value, str):
        return trimmed(value) if name in ANSWERS else value
    if isinstance(value, list):
        return [_message(each) for each in value]
    return value


def _message(value: Any) -> Any:
    speaker = (value.get("role") or value.get("from")) if isinstance(value, dict) else None
    place = "content" if isinstance(value, dict) and "content" in value else "value"
    if speaker not in ("assistant", "gpt") or not isinstance(value.get(place), str):
        return value
    return value | {place: trimmed(value[place])}
