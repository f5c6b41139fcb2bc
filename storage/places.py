"""Places: one way to name, read and write what lies in a local folder or under s3://bucket/prefix."""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from foretune.storage.cache import cache_dir, new_draft
from foretune.storage.copies import cached_copy
from foretune.storage.digests import digest_of
from foretune.storage.disk import Disk, Entry
from foretune.storage.errors import BadInput, StorageFault, disk_faults

if TYPE_CHECKING:
    from foretune.storage.buckets import Bucket

NO_CREDENTIALS_IN_PLACES = (
    "write s3://bucket/prefix, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
)
DOWNLOADS = 4  # files fetched at once; each of them streams in parts


@functools.lru_cache(maxsize=64)
def _bucket(name: str) -> Bucket:
    # s3fs takes 0.4 s to import, which a run on a local folder need not pay.
    from foretune.storage.buckets import Bucket

    return Bucket(name)


class Place:
    """A file or folder, local (`path`, `file://path`) or on S3 (`s3://bucket/key`).

    What is missing is FileNotFoundError, a bucket that does not exist is BadInput, everything else that a
    disk or S3 can do wrong is StorageFault after bounded retries. Dotted names are never listed.
    """

    __slots__ = ("_path", "_side", "is_local", "uri")

    def __init__(self, uri: str | os.PathLike[str]):
        text = os.fspath(uri)
        scheme, found, rest = text.partition("://")
        if not text or "\0" in text:
            raise BadInput(f"{text!r}: not a path; give a local path or s3://bucket/prefix")
        for kind in ("s3:", "file:"):
            if text.startswith(kind) and not found:
                few = "one slash" if text.startswith(f"{kind}/") else "two slashes"
                name = text[len(kind) :].lstrip("/")
                raise BadInput(f"{text}: {few} too few; write {kind}//{'' if kind == 's3:' else '/'}{name}")
        self.is_local = not found or scheme == "file"
        if self.is_local:
            named = os.path.expanduser(rest if found else text)
            if named.startswith("~"):
                raise BadInput(f"{text}: there is no user of that name; write ./{named} for a file called so")
            path = os.path.abspath(named)
            self._set(path, path, Disk())
        elif scheme == "s3":
            name, _, key = rest.partition("/")
            if not name:
                raise BadInput(f"{text}: no bucket named; write s3://bucket/prefix")
            if "@" in name or (":" in name and not name.startswith("arn:")):  # not repeated: it may be a secret
                raise BadInput(f"a place on S3 carries credentials; {NO_CREDENTIALS_IN_PLACES}")
            key = "/".join(part for part in key.split("/") if part)
            self._set(f"s3://{name}/{key}".rstrip("/"), key, _bucket(name))
        else:
            raise BadInput(f"{text}: {scheme}:// is not supported; give a local path or s3://bucket/prefix")

    def _set(self, uri: str, path: str, side: Disk | Bucket) -> None:
        self.uri, self._path, self._side = uri, path, side

    def __repr__(self) -> str:
        return f"Place({self.uri!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Place) and other.uri == self.uri

    def __hash__(self) -> int:
        return hash(self.uri)

    def __reduce__(self) -> tuple[type[Place], tuple[str]]:
        return Place, (self.uri,)

    def __truediv__(self, name: str) -> Place:
        """The place `name` below this one; `name` may have several parts but may not climb."""
        if not safe_name(name):
            raise ValueError(f"{name!r} is not a name below {self.uri}")
        below = Place.__new__(Place)
        below.is_local = self.is_local
        path = f"{self._path.rstrip('/')}/{name}" if self._path else name
        below._set(f"{self.uri.rstrip('/')}/{name}", path, self._side)
        return below

    @property
    def name(self) -> str:
        return self.uri.rsplit("/", 1)[-1]

    @property
    def local_path(self) -> Path:
        """The path on this machine; ValueError on S3."""
        if not self.is_local:
            raise ValueError(f"{self.uri} is not a local path")
        return Path(self._path)

    def entry(self) -> Entry | None:
        """Size, age and etag of the file, or None where there is no such file."""
        return self._side.entry(self._path)

    def exists(self) -> bool:
        """True for a file; a folder is what `list` finds something in."""
        return self.entry() is not None

    def is_folder(self) -> bool:
        return self._side.is_folder(self._path)

    def size(self) -> int:
        """Bytes of the file."""
        entry = self.entry()
        if entry is None:
            raise FileNotFoundError(self.uri)
        return entry.size

    def read_bytes(self) -> bytes:
        return self._side.read(self._path)

    def open(self, mode: str = "rb") -> BinaryIO:
        """A seekable stream that holds a bounded part of the file in memory; reading only."""
        if mode != "rb":
            raise ValueError(f"mode {mode!r}: read with 'rb', write with write_bytes or upload_from")
        return self._side.open(self._path)

    def write_bytes(self, data: bytes) -> None:
        """Write the whole file at once: a reader sees the old bytes or the new ones, never a part."""
        self._side.write(self._path, data)

    def upload_from(self, local: Path, sha256: str | None = None) -> None:
        """Copy a local file here, streamed; on S3 in parts, with `sha256` recorded beside the object."""
        self._side.upload(local, self._path, sha256)

    def download_to(self, local: Path) -> None:
        """Copy the file to a local path, streamed; parents are made, a reader never sees a part of it."""
        with disk_faults(local):
            local.parent.mkdir(parents=True, exist_ok=True)
        draft = local.with_name(f".{new_draft(local.name)}")
        try:
            self._side.download(self._path, draft)
            os.replace(draft, local)
        finally:
            draft.unlink(missing_ok=True)

    def list(self) -> list[str]:
        """Sorted names right below, files and folders alike; empty where nothing is there."""
        files, folders = self._side.children(self._path)
        return sorted(files + folders)

    def folders(self) -> list[str]:
        """Sorted names of the folders right below."""
        return sorted(self._side.children(self._path)[1])

    def walk(self) -> Iterator[Entry]:
        """Every file below, with its size and age; names are relative to this place."""
        return self._side.walk(self._path)

    def delete(self) -> None:
        """Delete the file, or the folder with all below it; nothing there is no error."""
        self._side.delete(self._path)

    def delete_files(self, names: list[str]) -> None:
        """Delete these files of the folder, and the folder when nothing is left in it; a missing one is no error."""
        unsafe = [name for name in names if not safe_name(name)]
        if unsafe:
            raise ValueError(f"{unsafe[0]!r} is not a name below {self.uri}")
        self._side.delete_files(self._path, names)

    def hidden_files(self) -> list[str]:
        """Dotted names right below: on disk, files that were being written; none on S3."""
        if not self.is_local or not self.is_folder():
            return []
        return sorted(name for name in os.listdir(self._path) if name.startswith("."))

    def abandon_uploads(self, before: float, named: re.Pattern[str]) -> int:
        """On S3, abort half-finished uploads of these names below, begun before `before` (epoch seconds); how many."""
        return 0 if isinstance(self._side, Disk) else self._side.abandon_uploads(self._path, before, named)


def local_path(uri: str | os.PathLike[str], what: str) -> Path:
    """A path on this machine for a library that writes there; BadInput, said of `what`, for one on S3."""
    place = Place(uri)
    if not place.is_local:
        raise BadInput(f"{what} {uri}: lies on S3; give a local folder")
    return place.local_path


def read_named(uri: str, what: str, most_bytes: int) -> bytes:
    """The bytes of a small file that the user names. BadInput, said of `what`, where there is none or a large one."""
    place = Place(uri)
    entry = place.entry()
    if entry is None:
        raise BadInput(f"{what} {uri}: no such file, or no regular one; give the path of a {what}.yaml")
    if entry.size > most_bytes:
        size = f"{entry.size / 2**20:.1f} MB"
        raise BadInput(f"{what} {uri}: {size}; a {what} has {most_bytes / 2**20:g} MB at most, mend the file")
    try:
        return place.read_bytes()
    except StorageFault as fault:
        if not place.is_local:
            raise
        raise BadInput(f"{what} {fault}") from fault


def safe_name(name: str) -> bool:
    """True for a relative name whose parts neither climb nor vanish."""
    return bool(name) and all(part not in ("", ".", "..") for part in name.split("/")) and "\0" not in name


def read_once(place: Place, etag: str) -> bytes:
    """The bytes of a small file whose etag is known, fetched from S3 once per machine and content."""
    if place.is_local:
        return place.read_bytes()
    memo = Place(cache_dir() / "manifests" / digest_of([place.uri, etag]))
    with contextlib.suppress(FileNotFoundError, StorageFault):
        return memo.read_bytes()
    data = place.read_bytes()
    with contextlib.suppress(StorageFault):
        memo.write_bytes(data)
    return data


def localise(uri: str | os.PathLike[str], wanted: Callable[[str], bool] | None = None) -> Path:
    """A local path with the content of `uri`, a file or a folder; of a folder on S3 only the `wanted` names.

    A local path is returned as it is. From S3 the content is downloaded once into the user's cache, under a
    name made of the URI and the etags, so that a changed object is fetched again. Raises BadInput when
    nothing is there.
    """
    place = Place(uri)
    if place.is_local:
        if not os.path.exists(place.local_path):
            raise BadInput(f"{place.uri}: no such file or folder; check the path")
        if not (place.local_path.is_file() or place.local_path.is_dir()):
            raise BadInput(f"{place.uri}: is a pipe or a device; give a regular file")
        return place.local_path
    return _download_file(place) or _download_folder(place, wanted)


def _download_file(place: Place) -> Path | None:
    entry = place.entry()
    if entry is None:
        return None
    copy = cache_dir() / "copies" / digest_of([place.uri, entry.etag, entry.size]) / place.name
    if not copy.exists():
        place.download_to(copy)
    return copy


def _download_folder(place: Place, wanted: Callable[[str], bool] | None) -> Path:
    entries = list(place.walk())
    if not entries:
        raise BadInput(f"{place.uri}: no such object or folder; check the URI")
    entries = [entry for entry in entries if wanted is None or wanted(entry.name)]
    if not entries:
        raise BadInput(f"{place.uri}: the folder holds no file of the kind that is read here; check the URI")
    unsafe = next((entry.name for entry in entries if not safe_name(entry.name)), None)
    if unsafe is not None:
        raise BadInput(f"{place.uri}/{unsafe}: this name would leave the folder; rename the object")
    identity = [place.uri, [[entry.name, entry.etag, entry.size] for entry in entries]]

    def fetch(draft: Path) -> None:
        with ThreadPoolExecutor(DOWNLOADS) as pool:
            names = [entry.name for entry in entries]
            list(pool.map(lambda name: (place / name).download_to(draft / name), names))

    return cached_copy(digest_of(identity), place.name or "folder", fetch)
