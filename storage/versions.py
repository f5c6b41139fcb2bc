"""Versions of a dataset: the newest file, or the newest set of parts, that a path, a glob or a prefix names."""

from __future__ import annotations

import re

from foretune.storage.datasets import KNOWN, KNOWN_SAID
from foretune.storage.errors import BadInput
from foretune.storage.parts import TRAIN, Parts, check_whole, entries_at, folder_and_pattern, parts_of
from foretune.storage.places import Place


def newest_version(uri: str) -> str:
    """The newest dataset: `uri` itself, or the last by name below a folder or prefix or matching a glob.

    Numbers in names count as numbers (v10 is newer than v9); among equal names the later file wins. A version in
    parts is named by a glob of them; of splits the training rows count. Raises BadInput when nothing fits.
    """
    if Place(uri).exists():  # also one whose name holds the characters of a pattern
        return uri
    found = parts_of(entries_at(uri, KNOWN))
    if not found:
        raise BadInput(f"{uri}: no dataset here; give a file, a folder or a glob of files ({KNOWN_SAID})")
    newest = max(_trained_on(found), key=lambda parts: (_natural(parts.names[0]), parts.modified))
    check_whole(uri, newest)
    return newest.address(folder_and_pattern(uri)[0])


def _trained_on(found: list[Parts]) -> list[Parts]:
    """Without the splits that nothing is trained on, but where there is nothing else."""
    return [parts for parts in found if parts.split in (None, TRAIN)] or found


def _natural(name: str) -> list[tuple[int, int | str]]:
    return [(1, int(part)) if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name) if part]
