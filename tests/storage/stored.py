"""One small artefact under a known key, and the same root as another machine sees it."""

from __future__ import annotations

from pathlib import Path

import pytest

from foretune.storage import contents
from foretune.storage.artifacts import ArtifactStore
from foretune.storage.places import Place
from foretune.storage.refs import ArtifactRef

KEY = "0123456789abcdef"


def make(store: ArtifactStore, text: str = "text", key: str = KEY, **options) -> ArtifactRef:
    with store.create("landscape", key, {"rows": [1, 2]}, **options) as draft:
        draft.path("a.txt").write_text(text)
        draft.path("deep/b.bin").write_bytes(b"\0" * 1000)
    return draft.ref


def folder(store: ArtifactStore, key: str = KEY) -> Place:
    return store.root / "artifacts" / "landscape" / key


def another_process(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ArtifactStore:
    """The same root as another machine sees it: nothing cached, nothing verified."""
    monkeypatch.setattr(contents, "_verified", set())
    monkeypatch.setenv("FORETUNE_CACHE", str(tmp_path / "another machine"))
    return ArtifactStore(store.root.uri)
