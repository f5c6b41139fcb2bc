"""Digests of objects, files and folders: what content addressing is made of."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from pathlib import Path
from typing import Any

from foretune.storage.cache import cache_dir
from foretune.storage.disk import Disk, hidden
from foretune.storage.errors import StorageFault, disk_faults

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


def change_identity(stat: os.stat_result) -> list[int]:
    """What a file's status has of its content: a write changes one of these, whatever is done to the dates after it.

    The inode's change time cannot be set (`touch -r`, `cp -p`, `rsync -t` keep size and modification time).
    """
    return [stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def file_digest(path: Path | str) -> str:
    """sha256 of a file's bytes, remembered in the user's cache by path and `change_identity`."""
    path = Path(os.path.abspath(path))
    with disk_faults(path, "read"):
        return _file_digest(path)


def _file_digest(path: Path) -> str:
    with open(path, "rb") as stream:  # a network file system asks its server for the status of what is opened
        before = os.fstat(stream.fileno())
    if before.st_size < _MEMO_BYTES or not _dates_changes(path):
        return hash_file(path)
    memo = cache_dir() / "digests" / digest_of([str(path), *change_identity(before)])
    try:
        known = memo.read_text()
    except (OSError, UnicodeDecodeError):
        known = ""
    if re.fullmatch("[0-9a-f]{64}", known):
        return known
    digest = hash_file(path)
    after = path.stat()
    settled = time.time() - max(after.st_mtime, after.st_ctime) > _SETTLED_SECONDS
    if settled and change_identity(after) == change_identity(before):
        # A read-only or full home costs time only: the file is hashed again at the next call.
        with contextlib.suppress(OSError, StorageFault):
            Disk().write(str(memo), digest.encode())
    return digest


_MOUNTS = Path("/proc/self/mountinfo")
_DATED = {"apfs", "bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "nfs", "nfs4", "overlay", "tmpfs", "xfs", "zfs"}


def _dates_changes(path: Path) -> bool:
    """Whether the file system keeps a change time of its own. Many in user space (sshfs, buckets mounted as folders)
    repeat the modification time, which can be set; what is not known is hashed every time."""
    if not _MOUNTS.exists():  # macOS: APFS
        return True
    real, kind, longest = os.path.realpath(path), "", -1
    for line in _MOUNTS.read_text(errors="replace").splitlines():
        place, _, rest = line.partition(" - ")
        mounted = place.split()[4].replace("\\040", " ")
        if len(mounted) >= longest and Path(real).is_relative_to(mounted):
            kind, longest = rest.split()[0], len(mounted)
    return kind in _DATED


def folder_digest(folder: Path | str) -> str:
    """Digest of a folder's files: their relative names and contents, not their order or dates.

    Names with a part that begins with a dot (download caches, version control) do not count.
    """
    folder = Path(folder)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return digest_of({name: file_digest(folder / name) for name in names if not hidden(name)})
