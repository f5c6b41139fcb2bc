"""Digests against hashlib and against values worked out by hand; memos that never lie."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretune.storage import digests
from foretune.storage.digests import canonical_json, digest_of, file_digest, folder_digest, sha256_hex

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def test_canonical_json_is_what_it_says():
    assert canonical_json({"b": [1, 2.5, None, True], "a": {"ü": "x y"}}) == (
        '{"a":{"ü":"x y"},"b":[1,2.5,null,true]}'.encode()
    )
    assert digest_of({}) == sha256(b"{}").hexdigest() == sha256_hex(b"{}")


@given(st.dictionaries(st.text(), JSON, min_size=2, max_size=6))
def test_the_order_of_keys_does_not_count(mapping):
    assert digest_of(mapping) == digest_of(dict(reversed(mapping.items())))


@given(JSON)
def test_canonical_json_loses_nothing(value):
    import json

    assert json.loads(canonical_json(value).decode("utf-8", errors="surrogatepass")) == value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, {"a": [math.nan]}])
def test_numbers_that_json_cannot_hold_are_refused(value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(value)


def test_a_set_has_no_digest():
    with pytest.raises(TypeError):
        canonical_json({1, 2})


def test_a_lone_surrogate_has_a_digest():
    assert canonical_json("\ud800") == b'"\xed\xa0\x80"'


def test_digests_do_not_depend_on_the_hash_seed():
    code = "from foretune.storage.digests import digest_of; print(digest_of({chr(97 + i): i for i in range(26)}))"
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(seen) == 1


def aged(path: Path, data: bytes) -> Path:
    """A file last changed an hour ago, so that its digest may be remembered."""
    path.write_bytes(data)
    hour_ago = path.stat().st_mtime - 3600
    os.utime(path, (hour_ago, hour_ago))
    return path


@pytest.mark.parametrize("size", [0, 10, 3 * 2**20])
def test_a_file_s_digest_is_sha256(tmp_path, size):
    data = os.urandom(size)
    path = aged(tmp_path / "a", data)
    assert file_digest(path) == file_digest(str(path)) == sha256(data).hexdigest()


def test_a_large_file_is_hashed_once_until_it_changes(tmp_path, monkeypatch):
    hashed = []
    original = digests.hash_file
    monkeypatch.setattr(digests, "hash_file", lambda path: hashed.append(path) or original(path))
    monkeypatch.setattr(digests, "_SETTLED_SECONDS", -1.0)  # a change time cannot be set, only waited for
    path = aged(tmp_path / "large", b"\1" * 2**20)
    assert file_digest(path) == file_digest(path)
    assert len(hashed) == 1
    path.write_bytes(b"\2" * 2**20)
    assert file_digest(path) == sha256(b"\2" * 2**20).hexdigest()
    assert len(hashed) == 2


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path):
    path = tmp_path / "large"
    path.write_bytes(b"\1" * 2**20)
    stat = path.stat()
    file_digest(path)
    path.write_bytes(b"\2" * 2**20)
    # A clock too coarse to tell the two writes apart.
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file_digest(path) == sha256(b"\2" * 2**20).hexdigest()


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("FORETUNE_CACHE", str(tmp_path / "file" / "cache"))
    path = aged(tmp_path / "large", b"\1" * 2**20)
    assert file_digest(path) == sha256(b"\1" * 2**20).hexdigest()


def test_a_folder_s_digest_is_of_names_and_contents(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, names in ((one, ("a", "deep/b")), (two, ("deep/b", "a"))):
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(name)
    (two / ".git").mkdir()
    (two / ".git" / "HEAD").write_text("a clone")
    by_hand = digest_of({"a": sha256(b"a").hexdigest(), "deep/b": sha256(b"deep/b").hexdigest()})
    assert folder_digest(one) == folder_digest(two) == by_hand
    (two / "a").rename(two / "c")
    assert folder_digest(two) != by_hand
