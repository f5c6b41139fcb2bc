"""How a draft becomes an artefact: renamed into place on disk; sent to S3 file by file, the manifest last.

Two writers may race for one key. What either of them stores is right, as the key says what it was made of;
what must not happen is a mixture of the two.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from foretune.storage.contents import cached_folder, mark_verified, remember
from foretune.storage.disk import sync_file, sync_folder
from foretune.storage.drafts import Draft
from foretune.storage.errors import StorageFault, disk_faults
from foretune.storage.manifest import MANIFEST, Manifest
from foretune.storage.places import Place

SENDERS = 4  # files of one artefact sent at once; each holds a few parts in memory
RACE_ROUNDS = 4  # each round ends a race of two with probability 1/2 or better
RACE_SECONDS = 4.0  # how long a writer to S3 waits for another one to finish what it sends


class Manifests(Protocol):
    """What a commit needs of the store: the manifest that is stored under a key."""

    def manifest(self, task: str, key: str) -> Manifest | None: ...

    def whole(self, task: str, key: str) -> Manifest | None: ...


def commit_on_disk(store: Manifests, draft: Draft, manifest: Manifest, target: Place) -> Manifest:
    """Rename the draft to `target`; the manifest that stands, which is another writer's if it was first."""
    path = target.local_path
    with disk_faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _open_as_the_umask_says(draft.folder, manifest)
        for _ in range(RACE_ROUNDS):
            try:
                os.rename(draft.folder, path)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                if winner := store.whole(manifest.task, manifest.key):
                    return winner
                _clear(store, manifest, target)
                if not path.exists() or (path / MANIFEST).exists():
                    continue
                _move_in(draft.folder, path, manifest)
            sync_folder(path.parent)
            mark_verified(path, manifest.files)
            return manifest
    raise _endless(target)


def _open_as_the_umask_says(draft: Path, manifest: Manifest) -> None:
    """A library may write a file for its owner alone (safetensors does); colleagues read the artefact's other files."""
    plain = stat.S_IMODE((draft / MANIFEST).stat().st_mode)
    for name in manifest.files:
        file = draft / name
        file.chmod(stat.S_IMODE(file.stat().st_mode) | plain)


def _clear(store: Manifests, manifest: Manifest, target: Place) -> None:
    """Remove the files of a torn artefact. What is not an artefact's is somebody's, and stays."""
    torn = store.manifest(manifest.task, manifest.key)
    target.delete_files([*{*manifest.files, *(torn.files if torn else ())}, MANIFEST])


def _move_in(draft: Path, path: Path, manifest: Manifest) -> None:
    """The draft's files into a folder that holds files of others; the manifest last, as on S3."""
    for name in (*manifest.files, MANIFEST):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(draft / name, path / name)
    sync_file(path / MANIFEST)
    sync_folder(path)


def commit_to_s3(store: Manifests, draft: Draft, manifest: Manifest, target: Place) -> Manifest:
    """Send the files, then the manifest; the manifest that stands in the end, ours or a racing writer's."""
    if winner := store.whole(manifest.task, manifest.key):
        return winner

    def send(name: str) -> None:
        (target / name).upload_from(draft.folder / name, manifest.files[name].sha256)

    for _ in range(RACE_ROUNDS):
        with ThreadPoolExecutor(SENDERS) as pool:
            list(pool.map(send, manifest.files))
        (target / MANIFEST).write_bytes(manifest.to_bytes())
        if settled := _settled(store, manifest, target):
            _keep_copy(draft, manifest, target)
            return settled
    raise _endless(target)


def _settled(store: Manifests, manifest: Manifest, target: Place) -> Manifest | None:
    """The manifest that stands, once it agrees with the files that stand; None when it does not in time.

    A racing writer may have sent a file of its own between our files and our manifest. It may still be busy,
    so it is given a while, of random length lest two writers correct each other for ever.
    """
    deadline = time.monotonic() + random.uniform(0.5, 1.0) * RACE_SECONDS
    while True:
        standing = store.manifest(manifest.task, manifest.key)
        if standing and _agrees(standing, target):
            return standing
        if time.monotonic() > deadline:
            return None
        time.sleep(0.1)


def _agrees(manifest: Manifest, target: Place) -> bool:
    def recorded(name: str) -> bool:
        entry = (target / name).entry()
        return entry is not None and entry.sha256 == manifest.files[name].sha256

    with ThreadPoolExecutor(SENDERS) as pool:
        return all(pool.map(recorded, manifest.files))


def _keep_copy(draft: Draft, manifest: Manifest, target: Place) -> None:
    """Hand the draft to the user's cache: the passes that follow on this machine need no download."""
    copy = cached_folder(manifest)
    with contextlib.suppress(OSError):
        copy.parent.mkdir(parents=True, exist_ok=True)
        os.rename(draft.folder, copy)
        remember(target, manifest)
        mark_verified(copy, manifest.files)


def _endless(target: Place) -> StorageFault:
    return StorageFault(f"{target.uri}: other writers keep replacing it; run again when they have ended")
