"""Artefacts: write-once folders addressed by (task, key), whole or absent.

<root>/artifacts/<task>/<key>/ holds the data files, and manifest.json last. Locally a draft folder is renamed
into place in one step; on S3 the files are sent first and the manifest after them.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import shutil
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from foretune.storage.cache import DRAFT, cache_dir, new_draft
from foretune.storage.commits import commit_on_disk, commit_to_s3
from foretune.storage.contents import Artifact, remember, remembered
from foretune.storage.drafts import Draft
from foretune.storage.errors import Damaged, FolderInTheWay, disk_faults
from foretune.storage.manifest import ARTEFACT_NAME, MANIFEST, Manifest
from foretune.storage.places import Place, read_once
from foretune.storage.refs import ArtifactRef
from foretune.storage.roots import root_to_write

logger = logging.getLogger(__name__)

_DRAFT = re.compile(rf".+-{DRAFT}")
_UPLOADED = re.compile(r"[^/]+/[0-9a-f]{16,64}/.+")

NAMED = 3
"""Manifests of a root that a process names as unreadable: more of them have one cause."""
_named: dict[str, set[str]] = {}


@dataclass(frozen=True)
class Stored:
    """What a listing shows of an artefact."""

    task: str
    key: str
    bytes: int  # all files, the manifest included
    modified: float  # epoch seconds of the newest file
    complete: bool  # a manifest is there


class ArtifactStore:
    """The artefacts under a storage root, a local folder or s3://bucket/prefix.

    With `full`, every `find` is a full one.
    """

    def __init__(self, root_uri: str | os.PathLike[str], *, full: bool = False):
        self.root, self.full = Place(root_uri), full
        self._artifacts = self.root / "artifacts"
        self._named = _named.setdefault(self.root.uri, set())

    def place(self, task: str, key: str) -> Place:
        for name in (task, key):
            if not ARTEFACT_NAME.fullmatch(name):
                raise ValueError(f"{name!r} cannot name an artefact: letters, digits, '.', '_' and '-' only")
        return self._artifacts / task / key

    def manifest(self, task: str, key: str, *, warn: bool = True) -> Manifest | None:
        """The manifest as stored, its files not looked at; None when absent or unreadable, with a warning."""
        place = self.place(task, key)
        try:
            return self._parsed(place, task, key, (place / MANIFEST).read_bytes(), warn)
        except (FileNotFoundError, FolderInTheWay):
            return None

    def whole(self, task: str, key: str) -> Manifest | None:
        """The manifest, if every file it names is there with the recorded size; None otherwise.

        On S3 this is one request, a listing of the artefact's own files, and a second one where this machine
        has not read that manifest before.
        """
        place = self.place(task, key)
        entries = {entry.name: entry for entry in place.walk()}
        if MANIFEST not in entries:
            return None
        try:
            manifest = self._parsed(place, task, key, read_once(place / MANIFEST, entries[MANIFEST].etag))
        except FileNotFoundError:
            return None  # deleted since the listing
        for name, record in manifest.files.items() if manifest else ():
            size = entries[name].size if name in entries else None
            if size != record.bytes:
                found = "is missing" if size is None else f"has {size} bytes"
                logger.warning("%s/%s %s, recorded are %d; absent", place.uri, name, found, record.bytes)
                return None
        return manifest

    def find(self, task: str, key: str, *, full: bool = False) -> ArtifactRef | None:
        """A reference to the artefact, if it is `whole`; None otherwise.

        `full` also hashes every file: an artefact that is damaged loses its manifest and counts as absent.
        """
        manifest = self.whole(task, key)
        if manifest and (full or self.full):
            try:
                Artifact(self.place(task, key), manifest).folder()
            except Damaged:
                return None
        return self._ref(manifest, cached=True) if manifest else None

    @contextlib.contextmanager
    def create(
        self,
        task: str,
        key: str,
        inputs: dict[str, Any],
        *,
        version: int = 1,
        libraries: dict[str, str] | None = None,
        git_commit: str | None = None,
        work: dict[str, int] | None = None,
        run_id: str | None = None,
    ) -> Generator[Draft]:
        """Write an artefact: `with store.create(...) as draft:` and `draft.ref` after the block.

        When anything raises, nothing is stored. When another writer stored the same key meanwhile, its artefact
        stands and ours is dropped. Raises StorageFault for a full, read-only or unreachable root.
        """
        target = self.place(task, key)
        root_to_write(self.root.uri)
        drafts = self._drafts if self.root.is_local else cache_dir() / "drafts"
        draft = Draft(drafts / new_draft(f"{task}-{key[:16]}"))
        started = time.monotonic()
        try:
            with disk_faults(draft.folder):
                yield draft
                manifest = Manifest(
                    task=task,
                    key=key,
                    version=version,
                    inputs=inputs,
                    files=draft.files(),
                    seconds=round(time.monotonic() - started, 3),
                    created=datetime.now(UTC).isoformat(timespec="seconds"),
                    git_commit=git_commit,
                    libraries=libraries or {},
                    work=work or {},
                    cost=draft.cost,
                    run_id=run_id,
                    checks=[
                        check if check.run_id else check.model_copy(update={"run_id": run_id}) for check in draft.checks
                    ],
                )
                draft.write_manifest(manifest)
            commit = commit_on_disk if self.root.is_local else commit_to_s3
            draft.stored = self._ref(commit(self, draft, manifest, target), cached=False)
        finally:
            shutil.rmtree(draft.folder, ignore_errors=True)

    def open(self, ref: ArtifactRef) -> Artifact:
        """The artefact's contents, from this root whatever root the reference was made in.

        From S3, content that this machine wrote or read before is not asked for again.
        """
        place = self.place(ref.task, ref.key)
        manifest = remembered(place, ref.sha256) or self.manifest(ref.task, ref.key)
        if manifest is None:
            raise Damaged(f"{place.uri} is gone or unreadable; run again to recompute")
        remember(place, manifest)
        return Artifact(place, manifest)

    def iterate(self) -> Iterator[Stored]:
        """Every artefact under the root with its size and age, half-written ones too; one listing.

        Folders of others whose names could be an artefact's are among them: `own_files` tells.
        """
        named = (entry for entry in self._artifacts.walk() if entry.name.count("/") >= 2)
        for (task, key), group in itertools.groupby(named, lambda entry: tuple(entry.name.split("/")[:2])):
            entries = list(group)
            if not (ARTEFACT_NAME.fullmatch(task) and ARTEFACT_NAME.fullmatch(key)):
                continue
            yield Stored(
                task,
                key,
                bytes=sum(entry.size for entry in entries),
                modified=max(entry.modified for entry in entries),
                complete=any(entry.name == f"{task}/{key}/{MANIFEST}" for entry in entries),
            )

    def own_files(self, task: str, key: str) -> list[str]:
        """Names of the files of a folder that are ours, the manifest last; none where the folder is another's.

        They are those of the manifest. On S3, where a killed writer leaves files without one, they are the objects
        that carry a digest as its writers record it.
        """
        place = self.place(task, key)
        if manifest := self.manifest(task, key):
            return [*manifest.files, MANIFEST]
        names = [] if place.is_local else [entry.name for entry in place.walk()]
        return [name for name in names if (entry := (place / name).entry()) and entry.sha256]

    def delete(self, task: str, key: str) -> None:
        """Remove an artefact's own files, the manifest last: an interrupted deletion counts as absent, and is ended by
        the next one. Files of others beside them stay, and their folder."""
        *files, last = self.own_files(task, key) or [MANIFEST]
        if files:
            self.place(task, key).delete_files(files)
            self.place(task, key).delete_files([last])

    def sweep(self, older_than: float) -> int:
        """Remove drafts and half-sent uploads that writers left `older_than` seconds ago; how many."""
        before = time.time() - older_than
        removed = self._artifacts.abandon_uploads(before, _UPLOADED)
        if not self.root.is_local or not self._drafts.is_dir():
            return removed
        for draft in self._drafts.iterdir():
            if not _DRAFT.fullmatch(draft.name) or not draft.is_dir() or draft.is_symlink():
                continue
            ages = [path.stat().st_mtime for path in (draft, *draft.rglob("*")) if path.exists()]
            if max(ages, default=0.0) < before:
                with disk_faults(draft, "delete"):
                    shutil.rmtree(draft)
                removed += 1
        return removed

    @property
    def _drafts(self) -> Path:
        # Below the root, so that the rename into place stays on one file system.
        return self._artifacts.local_path / ".drafts"

    def _ref(self, manifest: Manifest, *, cached: bool) -> ArtifactRef:
        uri = self.place(manifest.task, manifest.key).uri
        return ArtifactRef(task=manifest.task, key=manifest.key, uri=uri, sha256=manifest.sha256, cached=cached)

    def _parsed(self, place: Place, task: str, key: str, data: bytes, warn: bool = True) -> Manifest | None:
        try:
            manifest = Manifest.from_bytes(data)
        except ValueError as error:
            if warn:
                self._absent(place, f"unreadable manifest ({error})")
            return None
        if (manifest.task, manifest.key) != (task, key):
            self._absent(place, f"manifest of {manifest.task}/{manifest.key}")
            return None
        return manifest

    def _absent(self, place: Place, why: str) -> None:
        self._named.add(place.uri)
        if len(self._named) > NAMED:
            logger.info("%s: %s; counted as absent", place.uri, why)
            return
        more = "; more below this root are not named" if len(self._named) == NAMED else ""
        logger.warning("%s: %s; counted as absent%s", place.uri, why, more)
