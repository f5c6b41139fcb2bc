"""The user's cache folder: downloads, digest memos and rates. Everything in it can be deleted at any time."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Generator
from pathlib import Path


def cache_dir() -> Path:
    """$FORETUNE_CACHE, else $XDG_CACHE_HOME/foretune, else ~/.cache/foretune. Not created here."""
    if named := os.environ.get("FORETUNE_CACHE"):
        if "://" in named:
            raise ValueError(f"FORETUNE_CACHE={named}: give a folder of this machine")
        return Path(named).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "foretune"


DRAFT = r"\d+-[0-9a-f]{8}"
"""How the name of a draft ends: what its writer left behind, when killed, is told by it."""

_DIGEST = r"[0-9a-f]{40,64}"
_KEPT = {
    "artifacts": _DIGEST,
    "checked": _DIGEST,
    "copies": _DIGEST,
    "digests": _DIGEST,
    "drafts": rf".+-{DRAFT}",
    "manifests": _DIGEST,
    "offload": _DIGEST,
    "rates": r"\w+-[0-9a-f]{16}\.jsonl",
}
"""Folders of the cache, and the names that are ours in them: $FORETUNE_CACHE may name a folder that has others."""


def new_draft(name: str) -> str:
    """A name that no other writer uses, for a file or folder that is renamed once it is complete."""
    return f"{name}-{os.getpid()}-{secrets.token_hex(4)}"


@contextlib.contextmanager
def scratch_folder() -> Generator[Path]:
    """An empty folder for a library that insists on writing; gone, with all in it, after the block."""
    with tempfile.TemporaryDirectory(prefix="foretune-") as folder:
        yield Path(folder)


def sweep_cache(older_than: float) -> int:
    """Delete cached downloads, drafts and memos not touched for `older_than` seconds; bytes freed."""
    before = time.time() - older_than
    freed = 0
    for kind, name in _KEPT.items():
        folder = cache_dir() / kind
        for entry in folder.iterdir() if folder.is_dir() else ():
            # Half a copy of a killed writer stands beside the file or folder that it was to become.
            if re.fullmatch(rf"{name}|\.?.+-{DRAFT}", entry.name):
                freed += _drop_if_old(entry, before)
    return freed


def _drop_if_old(entry: Path, before: float) -> int:
    try:
        files = [path for path in entry.rglob("*") if path.is_file()] if entry.is_dir() else [entry]
        stats = [path.stat() for path in files]
        # atime: a download that is still read is in use, however long ago it was fetched.
        if max((max(s.st_mtime, s.st_atime) for s in stats), default=entry.stat().st_mtime) > before:
            return 0
    except FileNotFoundError:
        return 0
    if entry.is_dir():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)
    return sum(s.st_size for s in stats)
