"""A disk that is full or read-only: one line, and nothing torn."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from foretune.storage.artifacts import ArtifactStore
from foretune.storage.digests import sha256_hex
from foretune.storage.errors import BadInput, StorageFault
from tests.storage.children import one_line

KEY = "0123456789abcdef"


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_named_and_leaves_nothing(small_disk):
    store = ArtifactStore(small_disk / "root")
    said = "the disk is full; free some space or choose another --root"
    with pytest.raises(StorageFault, match=said) as caught, store.create("landscape", KEY, {}) as draft:
        draft.path("a.bin").write_bytes(b"\1" * 2**20)
    assert str(small_disk) in one_line(caught)
    assert list(store.iterate()) == []
    assert not list((small_disk / "root" / "artifacts" / ".drafts").iterdir())
    with pytest.raises(StorageFault, match="the disk is full"):
        (store.root / "report.html").write_bytes(b"\1" * 2**20)
    assert store.root.list() == ["artifacts", "foretune.json"]


def test_a_full_disk_is_recognised_through_the_libraries(small_disk):
    import torch

    store = ArtifactStore(small_disk / "root")
    with pytest.raises(StorageFault, match="the disk is full"), store.create("landscape", KEY, {}) as draft:
        draft.write_tensors("a.safetensors", {"w": torch.zeros(2**18)})
    rows = [{"text": sha256_hex(str(number).encode())} for number in range(2**14)]
    with pytest.raises(StorageFault, match="the disk is full"), store.create("landscape", KEY, {}) as draft:
        draft.write_table("a.parquet", rows)
    assert list(store.iterate()) == []


def test_a_full_cache_disk_says_so(small_disk, s3_root, monkeypatch):
    monkeypatch.setenv("FORETUNE_CACHE", str(small_disk))
    store, said = ArtifactStore(s3_root), r"the disk is full; .* or set FORETUNE_CACHE to another folder"
    with pytest.raises(StorageFault, match=said), store.create("landscape", KEY, {}) as draft:
        draft.path("a.bin").write_bytes(b"\1" * 2**20)


def test_an_error_from_another_place_passes_unchanged(store_on_disk):
    with pytest.raises(FileNotFoundError), store_on_disk.create("landscape", KEY, {}):
        Path("/nonexistent/dataset").read_bytes()
    with pytest.raises(PermissionError), store_on_disk.create("landscape", KEY, {}):
        raise PermissionError(13, "Permission denied", "/elsewhere/dataset")


@pytest.fixture
def store_on_disk(disk_root: str) -> ArtifactStore:
    return ArtifactStore(disk_root)


@pytest.fixture
def frozen(disk_root: str, store_on_disk: ArtifactStore):
    """`store_on_disk` with one artefact, and then read-only."""
    with store_on_disk.create("landscape", KEY, {}) as draft:
        draft.path("a.txt").write_text("text")
    if os.geteuid() != 0:
        subprocess.run(["chmod", "-R", "a-w", disk_root], check=True)
        yield store_on_disk
        subprocess.run(["chmod", "-R", "u+w", disk_root], check=True)
    elif subprocess.run(["mount", "--bind", disk_root, disk_root], capture_output=True).returncode:
        pytest.skip("root can write everywhere and may not mount read-only here")
    else:
        subprocess.run(["mount", "-o", "remount,bind,ro", disk_root], check=True)
        yield store_on_disk
        subprocess.run(["umount", disk_root], check=True)


def test_a_read_only_root_is_read_and_not_written(frozen, disk_root):
    assert frozen.open(frozen.find("landscape", KEY, full=True)).path("a.txt").read_text() == "text"
    refused = r"cannot write: (the file system is read-only|permission denied); .* or choose another --root"
    with pytest.raises(StorageFault, match=refused) as caught, frozen.create("landscape", "other", {}):
        pytest.fail("the block must not be entered: its work would be lost")
    assert disk_root in one_line(caught)
    with pytest.raises(StorageFault, match=refused):
        (frozen.root / "runs" / "x").write_bytes(b"1")


def test_damage_on_a_read_only_root_is_to_be_deleted_by_hand(frozen, monkeypatch):
    ref = frozen.find("landscape", KEY)
    monkeypatch.setattr("foretune.storage.contents._verified", set())
    monkeypatch.setattr("foretune.storage.contents.hash_file", lambda path: "0" * 64)
    with pytest.raises(StorageFault, match=r"a\.txt is damaged: .*delete .* by hand") as caught:
        frozen.open(ref).path("a.txt")
    one_line(caught)


def test_input_that_is_bad_is_told_from_a_place_that_is_sick():
    assert issubclass(BadInput, ValueError) and issubclass(StorageFault, RuntimeError)
    assert str(BadInput("one\n  two")) == "one two"
    assert str(StorageFault("one\ntwo")) == "one two"
