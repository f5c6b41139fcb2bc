"""What two sets of declared inputs do not share, in plain words: why a pass is computed again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from foretune.storage.display import one_line
from foretune.storage.manifest import Manifest

FILES = {
    "source": "the dataset file",
    "model": "the model's files",
    "sae": "the SAE's files",
    "labels": "the file of labels",
    "tokenizer": "the tokenizer's files",
    "gguf": "the model's file",
}
"""What a digest stands for, by the first part of its path that is named here."""

DIGEST = re.compile(r"[0-9a-f]{32,}$")
LONGEST = 60  # characters of a value
_ABSENT = "none"


@dataclass(frozen=True)
class Change:
    """One input that differs."""

    path: str  # dotted, as in training.learning_rate
    said: str
    size: int  # by which the most similar of several is found
    read: bool = False  # an artefact, which changed for a reason of its own


def changes(now: dict[str, Any], before: dict[str, Any]) -> list[Change]:
    """What differs, in the order of the inputs' names."""
    return [each for name in sorted({*now, *before}) for each in _compared(name, now.get(name), before.get(name))]


def distance(found: list[Change]) -> tuple[int, int]:
    return len(found), sum(each.size for each in found)


def said(found: list[Change]) -> str:
    """The changes in a line: what differs itself, then what was read and is new."""
    own = [each.said for each in found if not each.read]
    read = [each.said for each in found if each.read]
    return "; ".join([*dict.fromkeys(own), *([f"reads new {', '.join(read)}"] if read else [])])


def code_changes(manifest: Manifest, version: int, libraries: dict[str, str]) -> list[str]:
    """The pass's own version and its libraries, where they differ."""
    found = [] if manifest.version == version else [f"version {manifest.version} -> {version}"]
    for name in sorted({*libraries, *manifest.libraries}):
        was, is_ = manifest.libraries.get(name, _ABSENT), libraries.get(name, _ABSENT)
        found += [f"{name} {was} -> {is_}"] if was != is_ else []
    return found


def _compared(path: str, now: Any, before: Any) -> Iterator[Change]:
    if now == before:
        return
    if path.endswith(".ids"):  # a digest of the rows' ids
        yield Change(path.removesuffix(".ids"), f"other {path.removesuffix('.ids').replace('_', ' ')}", 1)
    elif _is_digest(now) or _is_digest(before):
        yield Change(path, _file(path, now, before), 1)
    elif isinstance(now, dict) and isinstance(before, dict) and not {*now, *before} & {"key"}:
        for name in sorted({*now, *before}):
            yield from _compared(f"{path}.{name}", now.get(name), before.get(name))
    elif _references(now) and _references(before):
        kept = {reference["key"] for reference in before}
        fresh = sum(reference["key"] not in kept for reference in now)
        counted = f"{fresh} of {len(now)}" if fresh else f"{len(before)} -> {len(now)}"
        yield Change(path, f"{path} ({counted})", fresh, read=True)
    elif _is_reference(now) or _is_reference(before):
        yield Change(path, path, 1, read=True)
    elif path == "sae" and (isinstance(now, list) or isinstance(before, list)):  # several are read in one forward
        counts = [len(each) if isinstance(each, list) else int(bool(each)) for each in (before, now)]
        yield Change(path, "other SAEs" if counts[0] == counts[1] else f"SAEs ({counts[0]} -> {counts[1]})", 1)
    elif _are_digests(now) and _are_digests(before):
        counts = str(len(now)) if len(now) == len(before) else f"{len(before)} -> {len(now)}"
        yield Change(path, f"other {path.replace('_', ' ')} ({counts})", 1)
    else:
        yield Change(path, f"{path} {_shown(before)} -> {_shown(now)}", 1)


def _file(path: str, now: Any, before: Any) -> str:
    name = next((FILES[part] for part in path.split(".") if part in FILES), path)
    if not (_is_digest(now) and _is_digest(before)):
        return f"{name}: {'none before' if _is_digest(now) else 'none now'}"
    return f"{name} changed ({before['digest'][:8]} -> {now['digest'][:8]})"


def _is_digest(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("digest"), str)


def _are_digests(value: Any) -> bool:
    """Of several things, in hexadecimal: nobody reads them."""
    return (
        isinstance(value, list) and bool(value) and all(isinstance(each, str) and DIGEST.match(each) for each in value)
    )


def _is_reference(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"task", "key"}


def _references(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_reference, value))


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str | int | bool | None):
        return one_line(_ABSENT if value is None else value, LONGEST)
    if isinstance(value, list) and all(isinstance(each, str | int | float) for each in value):
        return one_line(f"[{', '.join(map(str, value))}]", LONGEST)
    return "other" if value else _ABSENT
