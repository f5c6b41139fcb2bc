"""The contents of a stored artefact: files checked against the manifest before anyone reads them."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretune.storage.cache import DRAFT, cache_dir, new_draft
from foretune.storage.digests import change_identity, digest_of, hash_file
from foretune.storage.disk import Disk
from foretune.storage.errors import BadInput, Changed, Damaged, StorageFault
from foretune.storage.manifest import MANIFEST, FileRecord, Manifest
from foretune.storage.places import Place, local_path
from foretune.storage.tensor_files import TensorFile

if TYPE_CHECKING:
    import pandas
    import pyarrow
    import torch

logger = logging.getLogger(__name__)

RACE_PATIENCE = 60.0
"""Seconds to wait for the manifest of a writer that has begun to replace what was opened."""

# What this process has already hashed. A file that changes afterwards has another size or time (the one of its inode,
# which nobody can set) and is hashed again.
_verified: set[tuple[str, int, str]] = set()


def _identity(path: Path, record: FileRecord) -> tuple[str, int, str]:
    stat = path.stat()
    return digest_of([str(path), *change_identity(stat)]), stat.st_size, record.sha256


def mark_verified(folder: Path, files: dict[str, FileRecord]) -> None:
    """Spare the writer of `files` from hashing them again when it reads them."""
    for name, record in files.items():
        with contextlib.suppress(OSError):
            _verified.add(_identity(folder / name, record))


def is_whole(path: Path, record: FileRecord) -> bool:
    """True when the file at `path` has the recorded size and sha256."""
    try:
        identity = _identity(path, record)
        if identity in _verified:
            return True
        if identity[1] != record.bytes or hash_file(path) != record.sha256:
            return False
    except FileNotFoundError:
        return False
    _verified.add(identity)
    return True


_EXPORT = "export"
Told = Callable[[str, int, int], None]
"""What is going on, how much of it is done and of how much."""


def _is_free(folder: Path) -> bool:
    """True where nothing is, and for a folder that is empty but for what a killed copy left, which goes."""
    if not os.path.lexists(folder):
        return True
    if not folder.is_dir():
        return False
    left = [path for path in folder.iterdir() if re.fullmatch(rf"\.{_EXPORT}-{DRAFT}", path.name)]
    if len(left) < len(list(folder.iterdir())):
        return False
    for path in left:
        shutil.rmtree(path)
    return True


def cached_folder(manifest: Manifest) -> Path:
    """Where this machine keeps a copy of what lies on S3; roots with the same content share it."""
    return cache_dir() / "artifacts" / manifest.sha256


def _memo(place: Place, sha256: str) -> Path:
    return cache_dir() / "manifests" / digest_of([place.uri, sha256])


def remember(place: Place, manifest: Manifest) -> None:
    """Keep the manifest of an artefact on S3 by its content, for `remembered`."""
    memo = _memo(place, manifest.sha256)
    if not place.is_local and not memo.exists():
        with contextlib.suppress(StorageFault):
            Place(memo).write_bytes(manifest.to_bytes())


def remembered(place: Place, sha256: str) -> Manifest | None:
    """The manifest with this content digest, if this machine wrote or read it before."""
    if place.is_local:
        return None
    with contextlib.suppress(FileNotFoundError, ValueError, StorageFault):
        manifest = Manifest.from_bytes(Place(_memo(place, sha256)).read_bytes())
        return manifest if manifest.sha256 == sha256 else None
    return None


class Artifact:
    """An opened artefact. Every file is verified once per process before its path is handed out.

    A file that is not what the manifest says raises Damaged, and the manifest is removed, so that the next
    run finds nothing and recomputes.
    """

    def __init__(self, place: Place, manifest: Manifest):
        self.place, self.manifest = place, manifest

    def names(self) -> list[str]:
        return sorted(self.manifest.files)

    def path(self, name: str) -> Path:
        """Local path of one file; downloaded into the user's cache from S3. KeyError for an unknown name."""
        if name not in self.manifest.files:
            raise KeyError(f"{self.place.uri} holds {', '.join(self.names())}, no {name}")
        deadline = time.monotonic() + RACE_PATIENCE
        while not self._fetched(name):
            if self._replaced():
                continue
            if not self._being_replaced(name) or time.monotonic() > deadline:
                raise self._damage(name)
            time.sleep(0.2)
        return self._local / name

    def folder(self) -> Path:
        """Local path of the whole artefact, every file of it verified."""
        for name in self.names():
            self.path(name)
        return self._local

    def arrow(self, name: str, columns: list[str] | None = None, filters: Any = None) -> pyarrow.Table:
        """A Parquet file as an Arrow table; `filters` as in pyarrow.parquet.read_table."""
        import pyarrow.parquet as pq

        if filters is None:  # read_table imports pandas, which takes longer than most of our files
            return pq.ParquetFile(self.path(name), memory_map=True).read(columns)
        # No partitioning: a folder called "a=b" on the way would otherwise become a column.
        no_partitions: Any = None  # pyarrow documents None, and infers the type from its default
        return pq.read_table(
            self.path(name), columns=columns, filters=filters, memory_map=True, partitioning=no_partitions
        )

    def table(self, name: str, columns: list[str] | None = None) -> pandas.DataFrame:
        """A Parquet file as a data frame."""
        return self.arrow(name, columns).to_pandas()

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """Every tensor of a safetensors file, memory-mapped."""
        from safetensors.torch import load_file

        return load_file(self.path(name))

    def tensor_file(self, name: str) -> Any:
        """`safetensors.safe_open` handle: `.keys()`, `.get_tensor(key)`, `.get_slice(key)`, `.metadata()`."""
        from safetensors import safe_open

        return safe_open(self.path(name), framework="pt")

    def read_tensors(self, name: str) -> TensorFile:
        """A safetensors file to read tensor by tensor, of which nothing stays in memory."""
        return TensorFile(lambda: self.path(name))

    def json(self, name: str) -> Any:
        return json.loads(self.path(name).read_bytes())

    def text(self, name: str) -> str:
        """A UTF-8 file as text."""
        return self.path(name).read_text(encoding="utf-8")

    def copy_to(
        self,
        folder: str | os.PathLike[str],
        told: Told = lambda what, done, total: None,
        only: Collection[str] | None = None,
        beside: Mapping[str, bytes] | None = None,
    ) -> list[str]:
        """Copy every file, or `only` these, into a local folder, which must be new or empty, and write `beside` them
        what belongs to them there; the names of the files. `told` is called after each file is read and compared, and
        after each is copied, with the bytes so far and of all.

        BadInput for any other folder, and for one that cannot be written; nothing is left in it then.
        """
        target = Path(os.path.realpath(local_path(folder, "export to")))
        if not _is_free(target):
            raise BadInput(f"{folder}: exists and is not an empty folder; give another one")
        sizes = {name: self.manifest.files[name].bytes for name in self.names() if only is None or name in only}
        names = sorted(set(sizes) | set(beside or {}))
        done, total = 0, sum(sizes.values())
        for name, size in sizes.items():
            self.path(name)
            done += size
            told("checking", done, total)
        source, made, done = self.folder(), not os.path.exists(target), 0
        draft = target / f".{new_draft(_EXPORT)}"
        try:
            draft.mkdir(parents=True)
            for name, size in sizes.items():
                (draft / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / name, draft / name)
                done += size
                told("copying", done, total)
            for name, data in (beside or {}).items():
                (draft / name).write_bytes(data)
            for name in names:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(draft / name, target / name)
        except OSError as error:
            with contextlib.suppress(StorageFault):
                Disk().delete_files(str(target), names)
            raise BadInput(f"{folder}: cannot write: {error.strerror}; give another folder") from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
            if made:
                with contextlib.suppress(StorageFault):
                    Disk().delete_files(str(target), [])
        return names

    @property
    def _local(self) -> Path:
        return self.place.local_path if self.place.is_local else cached_folder(self.manifest)

    def _fetched(self, name: str) -> bool:
        record, local = self.manifest.files[name], self._local / name
        if is_whole(local, record):
            return True
        if self.place.is_local:
            return False
        try:
            (self.place / name).download_to(local)
        except (FileNotFoundError, Changed):
            return False
        if is_whole(local, record):
            return True
        local.unlink(missing_ok=True)
        return False

    def _replaced(self) -> bool:
        """True when a racing writer's manifest has taken the place of the one that was opened."""
        try:
            current = Manifest.from_bytes((self.place / MANIFEST).read_bytes())
        except (FileNotFoundError, ValueError):
            return False
        changed = current.files != self.manifest.files and current.files.keys() == self.manifest.files.keys()
        if changed:
            self.manifest = current
        return changed

    def _being_replaced(self, name: str) -> bool:
        """True when the object is whole but of another writer, whose manifest is still to come."""
        entry = None if self.place.is_local else (self.place / name).entry()
        return entry is not None and entry.sha256 not in (None, self.manifest.files[name].sha256)

    def _damage(self, name: str) -> Damaged:
        removed = "its manifest was removed"
        try:
            (self.place / MANIFEST).delete()
        except StorageFault:
            removed = f"delete {self.place.uri} by hand, it cannot be written"
        logger.warning("%s/%s is not what its manifest says; %s", self.place.uri, name, removed)
        record = self.manifest.files[name]
        return Damaged(
            f"{self.place.uri}/{name} is damaged: not the {record.bytes} bytes with sha256 "
            f"{record.sha256[:12]} that were stored ({removed}); run again to recompute"
        )
