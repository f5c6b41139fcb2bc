"""Artefacts that were torn, flipped or deleted: found before anyone reads them, and healed by recomputation."""

from __future__ import annotations

import logging
import os

import pytest

from foretune.storage import contents
from foretune.storage.artifacts import NAMED, ArtifactStore
from foretune.storage.errors import Damaged, StorageFault
from foretune.storage.places import Place
from tests.storage.stored import KEY, another_process, folder, make


def spoil(store: ArtifactStore, name: str, change) -> None:
    file = folder(store) / name
    data = change(file.read_bytes())
    file.delete()
    if data is not None:
        file.write_bytes(data)


@pytest.mark.parametrize(
    "name, change, complaint",
    [
        ("a.txt", lambda data: data[:-1], "has 3 bytes"),
        ("a.txt", lambda data: data + b"!", "has 5 bytes"),
        ("deep/b.bin", lambda data: None, "is missing"),
        ("manifest.json", lambda data: data[:-20], "unreadable manifest"),
        ("manifest.json", lambda data: b"[]", "unreadable manifest"),
        ("manifest.json", lambda data: data.replace(b'_version": 1', b'_version": 2'), "unreadable manifest"),
        ("manifest.json", lambda data: data.replace(b"a.txt", b"../.."), "unreadable manifest"),
        ("manifest.json", lambda data: data.replace(KEY.encode(), b"f" * 16), "manifest of"),
    ],
)
def test_a_torn_artefact_is_absent_and_heals(store, caplog, name, change, complaint):
    make(store)
    spoil(store, name, change)
    with caplog.at_level(logging.WARNING):
        assert store.find("landscape", KEY) is None
    assert complaint in caplog.text
    make(store)
    assert store.find("landscape", KEY, full=True)
    assert store.open(store.find("landscape", KEY)).path("a.txt").read_text() == "text"


def flip(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


def test_a_flipped_bit_is_found_when_opened_and_heals(store, monkeypatch, tmp_path):
    ref = make(store)
    spoil(store, "a.txt", flip)
    elsewhere = another_process(store, monkeypatch, tmp_path)
    assert elsewhere.find("landscape", KEY)
    with pytest.raises(Damaged, match=r"a\.txt is damaged: .*run again to recompute") as caught:
        elsewhere.open(ref).path("a.txt")
    assert "\n" not in str(caught.value)
    assert elsewhere.find("landscape", KEY) is None
    make(elsewhere)
    assert elsewhere.open(ref).path("a.txt").read_text() == "text"


def test_a_full_look_finds_a_flipped_bit(store, monkeypatch, tmp_path):
    make(store)
    spoil(store, "deep/b.bin", flip)
    elsewhere = another_process(store, monkeypatch, tmp_path)
    assert elsewhere.find("landscape", KEY, full=True) is None
    assert elsewhere.manifest("landscape", KEY) is None


def test_a_file_deleted_after_opening_is_damage(store, monkeypatch, tmp_path):
    ref = make(store)
    opened = another_process(store, monkeypatch, tmp_path).open(ref)
    (folder(store) / "a.txt").delete()
    with pytest.raises(Damaged, match="run again"):
        opened.path("a.txt")
    assert store.find("landscape", KEY) is None


def test_a_deleted_artefact_cannot_be_opened(store, monkeypatch, tmp_path):
    ref = make(store)
    store.delete("landscape", KEY)
    assert list(store.iterate()) == []
    with pytest.raises(StorageFault, match=r"is gone .*run again to recompute"):
        another_process(store, monkeypatch, tmp_path).open(ref)


def test_a_damaged_download_does_not_stay_in_the_cache(s3_root, monkeypatch, tmp_path):
    store = ArtifactStore(s3_root)
    ref = make(store)
    copy = store.open(ref).path("a.txt")
    copy.write_text("TEXT")
    os.utime(copy, ns=(1, 1))
    assert store.open(ref).path("a.txt").read_text() == "text"
    assert store.find("landscape", KEY)


def test_each_file_is_hashed_once_per_process(store, monkeypatch, tmp_path):
    hashed = []
    original = contents.hash_file
    monkeypatch.setattr(contents, "hash_file", lambda path: hashed.append(path.name) or original(path))
    ref = make(store)
    store.open(ref).folder()
    assert hashed == []
    elsewhere = another_process(store, monkeypatch, tmp_path)
    for _ in range(3):
        elsewhere.open(ref).folder()
    assert sorted(hashed) == ["a.txt", "b.bin"]


def test_of_many_unreadable_manifests_a_few_are_named(store: ArtifactStore, caplog: pytest.LogCaptureFixture):
    for number in range(NAMED + 3):
        with store.create("landscape", f"{number:016x}", {}) as draft:
            draft.path("a.txt").write_text("text")
        (Place(draft.ref.uri) / "manifest.json").write_bytes(b"<html>")
    found = [store.find("landscape", f"{number:016x}") for number in range(NAMED + 3)]
    said = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert found == [None] * (NAMED + 3) and len(said) == NAMED
    assert said[-1].endswith("counted as absent; more below this root are not named")
