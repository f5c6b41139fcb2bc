"""Digests of objects, files and folders: what content addressing is made of."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from foretune.storage.cache import cache_dir
from foretune.storage.disk import Disk, hidden
from foretune.storage.errors import StorageFault

# Below this, hashing costs less than reading a memo.
_MEMO_BYTES = 2**20
# A file changed twice within one tick of the clock keeps its mtime: a memo of so young a file would lie.
_SETTLED_SECONDS = 2.0


def canonical_json(obj: Any) -> bytes:
    """The one byte string of a JSON value: sorted keys, no spaces, UTF-8.

    Raises ValueError for NaN and infinities, which JSON cannot hold, and TypeError for other types.
    A lone surrogate in a string is kept (as its three bytes) so that every string has a digest.
    """
    text = json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", errors="surrogatepass")


def sha256_hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest_of(obj: Any) -> str:
    """sha256 of `canonical_json(obj)`, 64 hex digits."""
    return sha256_hex(canonical_json(obj))


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes, read in blocks, never from a memo."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_digest(path: Path | str) -> str:
    """sha256 of a file's bytes, remembered in the user's cache by path, size and modification time."""
    path = Path(os.path.abspath(path))
    before = path.stat()
    if before.st_size < _MEMO_BYTES:
        return hash_file(path)
    identity = [str(path), before.st_size, before.st_mtime_ns]
    memo = cache_dir() / "digests" / digest_of(identity)
    try:
        known = memo.read_text()
    except OSError:
        known = ""
    if len(known) == 64:
        return known
    digest = hash_file(path)
    after = path.stat()
    unchanged = (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    if unchanged and time.time() - after.st_mtime > _SETTLED_SECONDS:
        # A read-only or full home costs time only: the file is hashed again at the next call.
        with contextlib.suppress(OSError, StorageFault):
            Disk().write(str(memo), digest.encode())
    return digest


def folder_digest(folder: Path | str) -> str:
    """Digest of a folder's files: their relative names and contents, not their order or dates.

    Names with a part that begins with a dot (download caches, version control) do not count.
    """
    folder = Path(folder)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return digest_of({name: file_digest(folder / name) for name in names if not hidden(name)})
