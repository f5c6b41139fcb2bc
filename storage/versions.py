"""Versions of a dataset: the newest file that a path, a glob or a prefix names."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

from foretune.storage.datasets import KNOWN
from foretune.storage.errors import BadInput
from foretune.storage.places import Place


def newest_version(uri: str) -> str:
    """The newest dataset file: `uri` itself, or the last by name below a folder or prefix or matching a glob.

    Numbers in names count as numbers (v10 is newer than v9); among equal names the later file wins. Raises
    BadInput when nothing fits.
    """
    if Place(uri).exists():  # also one whose name holds the characters of a pattern
        return uri
    folder, pattern = _split(uri)
    entries = [e for e in Place(folder).walk() if e.name.lower().endswith(KNOWN) and _fits(e.name, pattern)]
    if not entries:
        raise BadInput(f"{uri}: no dataset here; give a file, a folder or a glob of {', '.join(KNOWN)} files")
    entries = [e for e in entries if e.name.rsplit("/", 1)[-1] not in NOT_ROWS] or entries
    _refuse_parts(uri, [entry.name for entry in entries])
    newest = max(entries, key=lambda entry: (_natural(entry.name), entry.modified))
    return f"{folder.rstrip('/')}/{newest.name}"


NOT_ROWS = ("dataset_infos.json", "dataset_info.json", "state.json")
"""What `datasets` writes beside the rows."""
_PART = re.compile(r"(.*?)[-_.]?(\d+)[-_.]of[-_.](\d+)(?=[-_.])|(part)[-_.](\d+)(?=[-_.])", re.IGNORECASE)
SPLITS = {"train", "training", "test", "testing", "valid", "validation", "dev", "eval", "val", "heldout"}


def _refuse_parts(uri: str, names: list[str]) -> None:
    """BadInput where the files are one dataset in parts, or its splits, instead of versions of one dataset."""
    parts = [name for name in names if _PART.match(name.rsplit("/", 1)[-1])]
    if len(parts) > 1:
        raise BadInput(
            f"{uri}: one dataset in {len(parts)} parts ({parts[0]}, ...), not versions of one; join them into one file"
        )
    stems = {re.split(r"[-_.]", name.rsplit("/", 1)[-1].lower())[0] for name in names}
    if len(names) > 1 and len(stems & SPLITS) > 1:
        raise BadInput(
            f"{uri}: splits of one dataset ({', '.join(sorted(names)[:4])}), not its versions; name the training file"
        )


def _split(uri: str) -> tuple[str, str | None]:
    """The folder that is walked, and the pattern of the names below it; no pattern: every name.

    A folder that is there under the very name comes before what the name would match as a pattern.
    """
    parts = uri.split("/")
    for number, part in enumerate(parts):
        if re.search(r"[*?\[]", part) and not Place("/".join(parts[: number + 1])).is_folder():
            folder = "/".join(parts[:number])
            return folder or ("/" if number else "."), "/".join(parts[number:])
    return uri, None


def _fits(name: str, pattern: str | None) -> bool:
    if pattern is None:
        return True
    parts, wanted = name.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def _natural(name: str) -> list[tuple[int, int | str]]:
    return [(1, int(part)) if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name) if part]
