"""One dataset in several files: its parts in order, its splits told apart, none of them missing."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from foretune.storage.disk import Entry
from foretune.storage.errors import BadInput
from foretune.storage.places import Place

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("valid", "validation", "dev", "eval", "val", "heldout"), VALIDATION),
    **dict.fromkeys(("test", "testing"), TEST),
}
"""First word of a file's or folder's name, and the split that it means, as `datasets` reads it."""
COUNTS = ("dataset_infos.json", "dataset_info.json")
"""What `datasets` writes beside the rows: among others how many rows each split has."""
NOT_ROWS = (*COUNTS, "state.json")

_OF = re.compile(r"(.*?)(\d+)([-_.]?of[-_.]?)(\d+)(.*)", re.IGNORECASE)  # train-00000-of-00002.parquet
_PART = re.compile(r"(.*?(?:part|shard|chunk)[-_.]?)(\d+)(.*)", re.IGNORECASE)  # part-00000-c000.snappy.parquet
_BARE = re.compile(r"()(0\d{3,4})(\..*)")  # 0000.parquet, as the hub converts datasets


@dataclass(frozen=True)
class Parts:
    """The files of one dataset, in their order."""

    pattern: str  # the name that they share, below the folder; of one file its name
    names: tuple[str, ...]
    numbers: tuple[int, ...]  # of the parts; empty for a file that is none
    total: int | None  # how many there are, where their names say so
    split: str | None
    modified: float  # of the last of them

    def lacking(self) -> list[int]:
        """Numbers of the parts that are not there."""
        if self.total is None:
            return []
        first = 0 if 0 in self.numbers or self.total not in self.numbers else 1
        return sorted(set(range(first, first + self.total)) - set(self.numbers))

    def address(self, folder: str) -> str:
        """A place that names exactly these files: a file, or a glob of the parts."""
        if len(self.names) == 1:
            return f"{folder.rstrip('/')}/{self.names[0]}"
        parent, _, name = self.pattern.rpartition("/")
        escaped = "*".join(map(glob.escape, name.split("*"))) if "*" in name else glob.escape(name)
        return f"{folder.rstrip('/')}/{parent}{'/' if parent else ''}{escaped}"


def parts_of(entries: Iterable[Entry]) -> list[Parts]:
    """Files below a folder as datasets: those whose names differ in the number of a part are one."""
    groups: dict[str, list[tuple[int, int, Entry]]] = {}
    totals: dict[str, int | None] = {}
    for at, entry in enumerate(entries):
        parent, slash, name = entry.name.rpartition("/")
        found = None if "*" in name else _OF.fullmatch(name) or _PART.fullmatch(name) or _BARE.fullmatch(name)
        pattern = f"{parent}{slash}{name if found is None else found[1] + '*' + ''.join(found.groups()[2:])}"
        groups.setdefault(pattern, []).append((int(found[2]) if found else -1, at, entry))
        totals[pattern] = int(found[4]) if found is not None and found.re is _OF else None
    return [
        _joined(pattern, sorted(group, key=lambda each: each[:2]), totals[pattern]) for pattern, group in groups.items()
    ]


def _joined(pattern: str, group: Sequence[tuple[int, int, Entry]], total: int | None) -> Parts:
    names = tuple(entry.name for _, _, entry in group)
    numbers = tuple(number for number, _, _ in group if number >= 0)
    return Parts(pattern, names, numbers, total, _split_of(names[0]), max(entry.modified for _, _, entry in group))


def _split_of(name: str) -> str | None:
    for part in reversed(name.lower().split("/")):
        split = SPLITS.get(re.split(r"[-_.]", part)[0])
        if split is not None:
            return split
    return None


def dataset_address(uri: str, known: tuple[str, ...], split: str = TRAIN) -> str:
    """The place of one dataset's rows: `uri` itself where it is a file, else a file or a glob below it.

    A folder with splits stands for its training rows, or for those of `split`. Raises BadInput where a part is
    missing, and for a folder of several datasets.
    """
    if Place(uri).exists():
        return uri
    folder, _ = folder_and_pattern(uri)
    found = _datasets(uri, known)
    if not found:
        raise BadInput(f"{uri}: no dataset here; give a file, a folder or a glob of its parts")
    wanted = _of_split(found, split)
    if len(wanted) > 1:
        listed = ", ".join(sorted(parts.names[0] for parts in wanted)[:4])
        raise BadInput(
            f"{uri}: {len(wanted)} datasets ({listed}), which are no parts of one; name a file, or a glob of its parts"
        )
    check_whole(uri, wanted[0])
    return wanted[0].address(folder)


def _of_split(found: list[Parts], split: str) -> list[Parts]:
    """The datasets of a split; validation rows may be called test. All of them where no name says a split."""
    for name in (split, TEST) if split == VALIDATION else (split,):
        wanted = [parts for parts in found if parts.split == name]
        if wanted:
            return wanted
    return [parts for parts in found if parts.split is None] or found


def check_whole(uri: str, parts: Parts) -> None:
    """BadInput where parts are missing that the others' names tell of."""
    lacking = parts.lacking()
    if lacking:
        said = ", ".join(map(str, lacking[:5])) + (", ..." if len(lacking) > 5 else "")
        raise BadInput(f"{uri}: {parts.names[0]} is one of {parts.total} parts, and {said} is not there; copy it again")


def other_splits(uri: str, known: tuple[str, ...]) -> list[str]:
    """Names of the splits below a folder that are not its training rows."""
    if Place(uri).exists() or not Place(folder_and_pattern(uri)[0]).is_folder():
        return []
    found = {parts.split for parts in _datasets(uri, known)} - {None, TRAIN}
    return sorted(map(str, found))


def _datasets(uri: str, known: tuple[str, ...]) -> list[Parts]:
    return parts_of(entries_at(uri, known))


def entries_at(uri: str, known: tuple[str, ...]) -> list[Entry]:
    """Files of rows below a folder, or that match a glob; what only describes rows is left out."""
    folder, pattern = folder_and_pattern(uri)
    entries = [e for e in Place(folder).walk() if e.name.lower().endswith(known) and fits(e.name, pattern)]
    return [e for e in entries if e.name.rsplit("/", 1)[-1] not in NOT_ROWS] or entries


def part_files(address: str, known: tuple[str, ...]) -> list[str]:
    """The files that `dataset_address` named, in order."""
    folder, pattern = folder_and_pattern(address)
    if pattern is None or Place(address).exists():
        return [address]
    (parts,) = _datasets(address, known)
    return [f"{folder.rstrip('/')}/{name}" for name in parts.names]


def told_rows(address: str, split: str | None) -> int | None:
    """How many rows `datasets` wrote down for this split, beside or above the parts; None where it is not clear."""
    parent = address.rpartition("/")[0]
    above = parent.rpartition("/")[0]  # as the hub has it, with the parts in a folder data
    for place in (Place(folder) / name for folder in (parent, above) if folder for name in COUNTS):
        if not place.exists():
            continue
        try:
            told = json.loads(place.read_bytes())
            configurations = [told] if "splits" in told else list(told.values())
            counts = [each["splits"][split or TRAIN]["num_examples"] for each in configurations]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        return counts[0] if len(counts) == 1 and isinstance(counts[0], int) else None
    return None


def split_of(address: str, folder: str | None = None) -> str | None:
    """The split that the name of a file or a glob of parts says; with `folder`, that of the folders below it too."""
    return _split_of(address.rsplit("/", 1)[-1] if folder is None else address.removeprefix(folder))


def folder_and_pattern(uri: str) -> tuple[str, str | None]:
    """The folder that is walked, and the pattern of the names below it; no pattern: every name.

    A folder that is there under the very name comes before what the name would match as a pattern.
    """
    parts = uri.split("/")
    for number, part in enumerate(parts):
        if re.search(r"[*?\[]", part) and not Place("/".join(parts[: number + 1])).is_folder():
            folder = "/".join(parts[:number])
            return folder or ("/" if number else "."), "/".join(parts[number:])
    return uri, None


def fits(name: str, pattern: str | None) -> bool:
    """Whether a name below the folder matches; a star stays on its level."""
    if pattern is None:
        return True
    parts, wanted = name.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))
