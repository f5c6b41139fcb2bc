"""The local side of a place: atomic, synced writes; dotted names are drafts and are never listed."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from foretune.storage.cache import new_draft
from foretune.storage.errors import FolderInTheWay, StorageFault, disk_faults

COPY_BYTES = 8 * 2**20
NAME_CHARACTERS = 40
"""Of a file's name in that of its draft: with 4 bytes a character and the rest, under the 255 of a file system."""


@dataclass(frozen=True)
class Entry:
    """One stored file, on disk or in a bucket."""

    name: str  # relative to the folder that was walked, "/" between parts
    size: int  # bytes
    modified: float  # seconds since the epoch
    etag: str  # changes whenever the content does
    sha256: str | None = None  # as the writer recorded it; buckets only


def hidden(name: str) -> bool:
    """True for a relative name with a dotted part: drafts, locks, download caches, version control."""
    return any(part.startswith(".") for part in name.split("/"))


class Disk:
    """Reads and writes by absolute path. A missing file is FileNotFoundError; a sick disk is StorageFault."""

    def entry(self, path: str) -> Entry | None:
        try:
            return _entry(Path(path), Path(path).name) if os.path.isfile(path) else None
        except FileNotFoundError:
            return None

    def is_folder(self, path: str) -> bool:
        return os.path.isdir(path)

    def read(self, path: str) -> bytes:
        with disk_faults(Path(path), "read"), _no_folder(path):
            return Path(path).read_bytes()

    def open(self, path: str) -> BinaryIO:
        with disk_faults(Path(path), "read"), _no_folder(path):
            return open(path, "rb")

    def write(self, path: str, data: bytes) -> None:
        self._replace(Path(path), io.BytesIO(data))

    def upload(self, local: Path, path: str, sha256: str | None = None) -> None:
        with open(local, "rb") as source:
            self._replace(Path(path), source)

    def download(self, path: str, local: Path) -> None:
        """Copy to `local`; the caller makes it whole with a rename."""
        with self.open(path) as source, disk_faults(local), open(local, "wb") as stream:
            shutil.copyfileobj(source, stream, COPY_BYTES)
            stream.flush()
            os.fsync(stream.fileno())

    def _replace(self, target: Path, source: BinaryIO) -> None:
        target = Path(os.path.realpath(target))  # the link stays, the file behind it is replaced
        if target.exists() and not target.is_file():
            raise StorageFault(f"{target}: cannot write: it is not a file; move it, or choose another --root")
        draft = target.with_name(f".{new_draft(target.name[:NAME_CHARACTERS])}")
        with disk_faults(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(draft, "xb") as stream:
                    shutil.copyfileobj(source, stream, COPY_BYTES)
                    stream.flush()
                    os.fsync(stream.fileno())
                if target.exists():
                    shutil.copymode(target, draft)
                os.replace(draft, target)
            except BaseException as error:
                with contextlib.suppress(OSError):
                    draft.unlink()
                if isinstance(error, OSError):
                    error.filename = str(target)  # who named the target knows nothing of a draft
                raise
            sync_folder(target.parent)

    def children(self, path: str) -> tuple[list[str], list[str]]:
        """Names of the files and of the folders right below `path`; both empty where nothing is there."""
        files, folders = [], []
        with disk_faults(Path(path), "read"):
            try:
                with os.scandir(path) as found:
                    for item in found:
                        (folders if item.is_dir() else files).append(item.name)
            except (FileNotFoundError, NotADirectoryError):
                pass
        return [n for n in files if not hidden(n)], [n for n in folders if not hidden(n)]

    def walk(self, path: str) -> Iterator[Entry]:
        """Every file below `path`, in the order of their names; dotted files and folders left out."""
        for folder, folders, files in os.walk(path):
            folders[:] = sorted(name for name in folders if not hidden(name))
            for name in sorted(name for name in files if not hidden(name)):
                file = Path(folder, name)
                try:
                    with disk_faults(file, "read"):
                        entry = _entry(file, file.relative_to(path).as_posix())
                except FileNotFoundError:
                    continue  # deleted by another process since the folder was listed, or a link to nothing
                yield entry

    def delete_files(self, path: str, names: list[str]) -> None:
        """Remove these files below a folder, and the folders that are empty then, itself included."""
        folders = {Path(path)}
        with disk_faults(Path(path), "delete"):
            for name in names:
                file = Path(path, name)
                folders.update(parent for parent in file.parents if parent.is_relative_to(path))
                file.unlink(missing_ok=True)
            for folder in sorted(folders, key=lambda folder: -len(folder.parts)):
                try:
                    folder.rmdir()
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.ENOTDIR):
                        raise

    def delete(self, path: str) -> None:
        """Remove a file, or a folder and all below it; nothing there is no error."""
        with disk_faults(Path(path), "delete"):
            try:
                if os.path.isdir(path) and not os.path.islink(path):
                    shutil.rmtree(path)
                else:
                    os.unlink(path)
            except FileNotFoundError:
                pass


@contextlib.contextmanager
def _no_folder(path: str) -> Generator[None]:
    try:
        yield
    except IsADirectoryError:
        raise FolderInTheWay(path) from None


def _entry(file: Path, name: str) -> Entry:
    stat = file.stat()
    return Entry(name, stat.st_size, stat.st_mtime, f"{stat.st_size}-{stat.st_mtime_ns}")


def sync_file(path: Path) -> None:
    """Force a file's bytes to the disk: a rename may otherwise survive a power cut that the bytes do not."""
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Force a folder's names to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
