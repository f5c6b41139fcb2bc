"""One generated attempt, and what its generators share."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml

from tests.hostile.attempts import Case


@dataclass(frozen=True)
class Attempt:
    """One generated attempt: what it is, and how its case is made."""

    what: str
    prepare: Callable[[Case], list[str]]
    own_root: bool = False
    process: bool = False
    heals: bool = True  # a marker that is none is left to its owner


def in_words(*parts: Any) -> str:
    return ascii(parts if len(parts) > 1 else parts[0])[:400]


def planned(case: Case, *options: str) -> list[str]:
    return ["plan", str(case.request), *options]


def dumped(value: Any) -> str:
    """JSON of any value, also of what only Python's JSON holds."""
    return json.dumps(value, default=str)


def yaml_text(content: Any) -> str:
    """YAML of it; JSON, which YAML reads too, of what YAML's writer refuses."""
    try:
        text = yaml.safe_dump(content)
        text.encode()
        return text
    except (yaml.YAMLError, UnicodeEncodeError, RecursionError):
        return dumped(content)


def put(content: Any, place: tuple, value: Any) -> Any:
    at = content
    for part in place[:-1]:
        at = at[part]
    at[place[-1]] = value
    return content


def escapable(text: str) -> bool:
    try:
        text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return False
    return True
