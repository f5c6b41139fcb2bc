"""S3 that answers late, in part, something else or what was: nothing wrong is read, and what heals is healed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from foretune.storage.artifacts import ArtifactStore
from foretune.storage.errors import BadInput, StorageFault
from tests.storage.conftest import FaultyProxy, How
from tests.storage.lies import LIES

pytestmark = pytest.mark.slow

KEY = "0123456789abcdef"
TEXT = "what was stored " * 100
TROUBLES: dict[str, How] = {**LIES, "late": "late", "truncate": "truncate", "reset": "reset"}
ASKED = {
    True: [("GET", "a.txt"), ("HEAD", "a.txt"), ("GET", "manifest.json"), ("HEAD", "manifest.json")],
    False: [("PUT", "a.txt"), ("PUT", "manifest.json"), ("HEAD", "a.txt"), ("GET", "manifest.json")],
}
"""Of an artefact that was stored before, and of one that is stored now."""
LONG = bool(os.environ.get("HOSTILE_SECONDS"))
QUICK = ["flipped", "page", "no ETag"]
"""In `make test`; `make hostile` tries all."""


def stored_and_read(root: str) -> str:
    """The text of the artefact: found, or stored now, then read."""
    store = ArtifactStore(root)
    found = store.find("landscape", KEY)
    if found is None:
        with store.create("landscape", KEY, {}) as draft:
            draft.path("a.txt").write_text(TEXT)
        found = draft.ref
    return store.open(found).path("a.txt").read_text()


@pytest.mark.parametrize("begun", [False, True], ids=["nothing stored", "stored before"])
@pytest.mark.parametrize("trouble", TROUBLES if LONG else QUICK)
def test_a_lie_is_never_read_as_the_artefact_and_the_next_run_heals(
    faulty_s3: FaultyProxy, s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str, begun: bool
):
    monkeypatch.setattr("foretune.storage.commits.RACE_SECONDS", 0.2)  # what waits for another writer that is none
    monkeypatch.setattr("foretune.storage.contents.RACE_PATIENCE", 0.5)
    for number, (method, part) in enumerate(ASKED[begun]):
        root = f"{s3_root}{number}"
        if begun:
            stored_and_read(root)
        monkeypatch.setenv("FORETUNE_CACHE", str(tmp_path / f"{number} told lies"))
        faulty_s3.faults.clear()
        faulty_s3.inject(TROUBLES[trouble], times=20, method=method, part=part)
        try:
            assert stored_and_read(root) == TEXT, (method, part)
        except (StorageFault, BadInput) as fault:
            assert "\n" not in str(fault)
        faulty_s3.faults.clear()
        for attempt in ("to heal", "to be whole"):  # what was damaged is found by the first, which says so
            monkeypatch.setenv("FORETUNE_CACHE", str(tmp_path / f"{number} {attempt}"))
            try:
                assert stored_and_read(root) == TEXT, (method, part)
            except StorageFault as fault:
                assert attempt == "to heal" and "damaged" in str(fault), (method, part, str(fault))
