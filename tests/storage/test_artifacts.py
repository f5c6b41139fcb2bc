"""Artefacts on disk and on S3: whole or absent, content addressed, verified before anyone reads."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from foretune.storage.artifacts import ArtifactStore
from foretune.storage.cache import new_draft
from foretune.storage.places import Place
from foretune.storage.refs import ArtifactRef
from tests.storage.stored import KEY, another_process, folder, make


def test_an_artefact_is_absent_until_its_block_ends(store):
    assert store.find("landscape", KEY) is None
    with store.create("landscape", KEY, {}) as draft:
        draft.path("a.txt").write_text("text")
        assert store.find("landscape", KEY) is None
        assert list(folder(store).walk()) == []
        with pytest.raises(RuntimeError, match="after it"):
            _ = draft.ref
    found = store.find("landscape", KEY)
    assert found == draft.ref.model_copy(update={"cached": True})
    assert not draft.ref.cached


def test_the_manifest_says_what_the_artefact_is_made_of(store):
    before = time.time()
    make(store, "text", version=3, libraries={"torch": "2.0"}, git_commit="abc")
    manifest = json.loads((folder(store) / "manifest.json").read_bytes())
    assert manifest["manifest_version"] == 1
    assert (manifest["task"], manifest["key"], manifest["version"]) == ("landscape", KEY, 3)
    assert manifest["inputs"] == {"rows": [1, 2]}
    assert manifest["libraries"] == {"torch": "2.0"}
    assert manifest["git_commit"] == "abc"
    assert manifest["files"]["a.txt"] == {"sha256": sha256(b"text").hexdigest(), "bytes": 4}
    assert manifest["files"]["deep/b.bin"]["bytes"] == 1000
    assert 0 <= manifest["seconds"] <= time.time() - before + 1
    assert manifest["created"].endswith("+00:00")
    assert store.manifest("landscape", KEY).bytes == 1004


def test_the_manifest_is_sent_last(faulty_s3, s3_root):
    make(ArtifactStore(s3_root))
    sent = [path.rsplit("/", 1)[-1].split("?")[0] for method, path in faulty_s3.requests if method == "PUT"]
    assert sent[0] == "foretune.json"
    assert sorted(sent[1:-1]) == ["a.txt", "b.bin"]
    assert sent[-1] == "manifest.json"


def test_the_digest_is_of_the_content_alone(store):
    one = make(store, "text", key="aa")
    two = make(store, "text", key="bb", version=2)
    other = make(store, "tex!", key="cc")
    assert one.sha256 == two.sha256 != other.sha256


def test_an_exception_leaves_nothing(store):
    with pytest.raises(ZeroDivisionError), store.create("landscape", KEY, {}) as draft:
        draft.path("a.txt").write_text("half")
        raise ZeroDivisionError
    assert store.find("landscape", KEY) is None
    assert list(store.iterate()) == []
    assert not draft.folder.exists()


def test_an_artefact_without_files_is_refused(store):
    with pytest.raises(ValueError, match="nothing was written"), store.create("landscape", KEY, {}):
        pass


def test_tables_tensors_and_json_come_back(store, monkeypatch, tmp_path):
    import torch

    tensors = {"w": torch.arange(6.0).reshape(2, 3).T, "i": torch.tensor([1, 2], dtype=torch.int32)}
    frame = pd.DataFrame({"x": [1.5, 2.5], "name": ["a", None]})
    with store.create("landscape", KEY, {}) as draft:
        draft.write_table("rows.parquet", [{"a": 1, "ids": [1, 2]}, {"a": 2, "ids": []}])
        draft.write_table("frame.parquet", frame)
        draft.write_table("arrow.parquet", pa.table({"z": [1, 2, 3]}))
        draft.write_tensors("t.safetensors", tensors)
        draft.write_json("s.json", {"n": np.int64(3), "x": np.float32(0.5), "v": np.arange(3), "text": "ü"})
    opened = another_process(store, monkeypatch, tmp_path).open(draft.ref)
    assert opened.names() == ["arrow.parquet", "frame.parquet", "rows.parquet", "s.json", "t.safetensors"]
    assert opened.arrow("rows.parquet").to_pylist() == [{"a": 1, "ids": [1, 2]}, {"a": 2, "ids": []}]
    assert opened.arrow("rows.parquet", columns=["a"], filters=[("a", ">", 1)]).to_pylist() == [{"a": 2}]
    pd.testing.assert_frame_equal(opened.table("frame.parquet"), frame, check_dtype=False)
    assert opened.table("arrow.parquet")["z"].tolist() == [1, 2, 3]
    loaded = opened.tensors("t.safetensors")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    with opened.tensor_file("t.safetensors") as handle:
        assert torch.equal(handle.get_slice("w")[1:2], tensors["w"][1:2])
    assert opened.json("s.json") == {"n": 3, "x": 0.5, "v": [0, 1, 2], "text": "ü"}
    with pytest.raises(KeyError, match=r"rows\.parquet"):
        opened.path("other.parquet")


def test_nan_is_refused_in_json(store):
    with pytest.raises(ValueError, match="JSON compliant"), store.create("landscape", KEY, {}) as draft:
        draft.write_json("s.json", {"x": float("nan")})


def test_a_folder_holds_every_file(store, monkeypatch, tmp_path):
    ref = make(store)
    files = another_process(store, monkeypatch, tmp_path).open(ref).folder()
    assert (files / "a.txt").read_text() == "text"
    assert (files / "deep/b.bin").read_bytes() == b"\0" * 1000


@pytest.mark.parametrize("name", ["../a", "/a", "manifest.json", ".a", "a/.b", ""])
def test_a_file_of_an_artefact_stays_inside_it(store, name):
    with pytest.raises(ValueError, match="cannot be a file"), store.create("landscape", KEY, {}) as draft:
        draft.path(name)


@pytest.mark.parametrize("task, key", [("..", KEY), ("a/b", KEY), ("a", ""), ("a", ".drafts"), ("a", "k k")])
def test_an_artefact_stays_inside_the_root(store, task, key):
    with pytest.raises(ValueError, match="cannot name an artefact"):
        store.find(task, key)


def test_a_library_s_lock_file_is_not_part_of_the_artefact(store):
    with store.create("landscape", KEY, {}) as draft:
        draft.path("a.txt").write_text("text")
        (draft.folder / ".lock").write_text("")
    assert store.open(draft.ref).names() == ["a.txt"]
    assert store.find("landscape", KEY, full=True)


def test_a_copied_root_keeps_every_hit(store, tmp_path, s3_root):
    ref = make(store)
    copies = [str(tmp_path / "copy"), s3_root.replace("root", "copy")]
    for uri in copies:
        for entry in store.root.walk():
            (Place(uri) / entry.name).write_bytes((store.root / entry.name).read_bytes())
        copied = ArtifactStore(uri)
        assert copied.find("landscape", KEY, full=True).sha256 == ref.sha256
        assert copied.open(ref).path("a.txt").read_text() == "text"


def test_a_reference_travels_between_processes(store):
    ref = make(store)
    assert pickle.loads(pickle.dumps(ref)) == ref
    assert ArtifactRef.model_validate_json(ref.model_dump_json()) == ref


def test_a_listing_tells_sizes_ages_and_what_is_half_written(store):
    make(store, key="aa")
    make(store, key="bb")
    (folder(store, "bb") / "manifest.json").delete()
    (store.root / "artifacts" / "stray.txt").write_bytes(b"1")
    listed = {stored.key: stored for stored in store.iterate()}
    assert list(listed) == ["aa", "bb"]
    assert listed["aa"].complete and not listed["bb"].complete
    size = (folder(store, "aa") / "manifest.json").size()
    assert (listed["aa"].bytes, listed["bb"].bytes) == (1004 + size, 1004)
    assert abs(listed["aa"].modified - time.time()) < 60


def test_a_known_artefact_costs_one_request(faulty_s3, s3_root):
    store = ArtifactStore(s3_root)
    make(store)
    store.find("landscape", KEY)
    faulty_s3.requests.clear()
    assert store.find("landscape", KEY)
    assert store.find("landscape", "missing") is None
    assert [method for method, _ in faulty_s3.requests] == ["GET", "GET"]


def test_a_writer_s_own_machine_downloads_nothing(faulty_s3, s3_root):
    store = ArtifactStore(s3_root)
    ref = make(store)
    faulty_s3.requests.clear()
    store.open(ref).folder()
    assert faulty_s3.requests == []


def test_leftovers_of_killed_writers_are_swept_by_age(disk_root):
    store = ArtifactStore(disk_root)
    make(store)
    left = Path(disk_root) / "artifacts" / ".drafts" / new_draft("landscape-x")
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"1")
    assert store.sweep(older_than=3600) == 0
    for path in (left / "half", left):
        os.utime(path, (0, 0))
    assert store.sweep(older_than=3600) == 1
    assert not left.exists()
    assert store.find("landscape", KEY, full=True)


def test_half_sent_uploads_of_killed_writers_are_swept_by_age(s3_root, s3_client):
    bucket = s3_root.split("/")[2]
    s3_client.create_multipart_upload(Bucket=bucket, Key=f"root/artifacts/landscape/{KEY}/a.bin")
    store = ArtifactStore(s3_root)
    # The server dates every upload 2010-11-10.
    assert store.sweep(older_than=time.time()) == 0
    assert store.sweep(older_than=3600) == 1
    assert not s3_client.list_multipart_uploads(Bucket=bucket).get("Uploads")


def test_a_look_up_imports_nothing_heavy(disk_root):
    make(ArtifactStore(disk_root))
    code = f"""
import sys, foretune.storage.runs, foretune.storage.events, foretune.storage.datasets
from foretune.storage.artifacts import ArtifactStore
assert ArtifactStore({disk_root!r}).find('landscape', {KEY!r})
heavy = {{'s3fs', 'fsspec', 'aiohttp', 'pandas', 'torch', 'pyarrow', 'numpy', 'tenacity', 'safetensors'}}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_a_moved_root_keeps_every_hit(disk_root, tmp_path):
    ref = make(ArtifactStore(disk_root))
    shutil.move(disk_root, tmp_path / "moved")
    moved = ArtifactStore(tmp_path / "moved")
    assert moved.find("landscape", KEY).sha256 == ref.sha256
    assert moved.open(ref).path("a.txt").read_text() == "text"


def test_files_are_readable_as_the_umask_says(disk_root):
    """safetensors writes a file for its owner alone, beside a manifest that everybody may read."""
    import torch

    store = ArtifactStore(str(disk_root))
    with store.create("landscape", KEY, {}) as draft:
        draft.write_tensors("a.safetensors", {"a": torch.zeros(2)})
        draft.path("b.txt").write_text("b")
        draft.path("b.txt").chmod(0o600)
        draft.path("c.sh").write_text("c")
        draft.path("c.sh").chmod(0o755)
    mode = {path.name: path.stat().st_mode & 0o777 for path in folder(store).local_path.iterdir()}
    plain = mode["manifest.json"]
    assert (mode["a.safetensors"], mode["b.txt"], mode["c.sh"]) == (plain, plain, 0o755 | plain)
