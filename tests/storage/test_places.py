"""One contract for places: every test with `root` runs on a local folder and on a real S3 server."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from foretune.storage.cache import cache_dir, sweep_cache
from foretune.storage.errors import BadInput, StorageFault
from foretune.storage.places import Place, localise


@pytest.fixture
def folder(root: str) -> Place:
    return Place(root) / "folder"


def test_nothing_is_found_in_an_empty_place(folder):
    assert not folder.exists()
    assert not folder.is_folder()
    assert folder.entry() is None
    assert folder.list() == []
    assert folder.folders() == []
    assert list(folder.walk()) == []


@pytest.mark.parametrize("read", [Place.read_bytes, Place.size, Place.open])
def test_reading_what_is_missing_is_file_not_found(folder, read):
    with pytest.raises(FileNotFoundError):
        read(folder / "missing")


def test_downloading_what_is_missing_leaves_no_file(folder, tmp_path):
    with pytest.raises(FileNotFoundError):
        (folder / "missing").download_to(tmp_path / "copies" / "missing")
    assert list((tmp_path / "copies").iterdir()) == []


@pytest.mark.parametrize("data", [b"", b"one", bytes(range(256)) * 300])
def test_what_is_written_is_read(folder, data):
    file = folder / "a file + ümlaut.bin"
    file.write_bytes(b"older and longer than some of what follows")
    file.write_bytes(data)
    assert file.read_bytes() == data
    assert file.size() == len(data)
    assert file.exists()
    assert folder.is_folder()


def test_names_are_listed_by_level_and_walked_in_depth(folder):
    for name in ("b.txt", "a/x.txt", "a/deep/y.txt", ".draft/z.txt", ".hidden", "a/.hidden"):
        (folder / name).write_bytes(name.encode())
    assert folder.list() == ["a", "b.txt"]
    assert folder.folders() == ["a"]
    walked = {entry.name: entry.size for entry in folder.walk()}
    assert walked == {"b.txt": 5, "a/x.txt": 7, "a/deep/y.txt": 12}


def test_a_listing_is_never_remembered(folder):
    (folder / "a").write_bytes(b"1")
    assert folder.list() == ["a"]
    (folder / "b").write_bytes(b"1")
    (folder / "a").delete()
    assert folder.list() == ["b"]
    assert not (folder / "a").exists()


def test_deleting_takes_the_subtree_and_no_namesake(folder):
    for name in ("a/x", "a/y/z", "a/.hidden", "ab", "abc/x"):
        (folder / name).write_bytes(b"1")
    (folder / "a").delete()
    assert [entry.name for entry in folder.walk()] == ["ab", "abc/x"]
    assert not (folder / "a" / ".hidden").exists()
    (folder / "a").delete()


def test_listings_and_deletions_go_on_after_the_first_page(folder, monkeypatch):
    monkeypatch.setattr("foretune.storage.buckets.BATCH", 3)
    names = sorted(f"{number}" for number in range(7))
    for name in names:
        (folder / name).write_bytes(b"")
        (folder / "sub" / name).write_bytes(b"")
    assert [entry.name for entry in folder.walk()] == names + [f"sub/{name}" for name in names]
    assert folder.list() == [*names, "sub"]
    folder.delete()
    assert list(folder.walk()) == []


@pytest.mark.parametrize("size", [0, 1, 8 * 2**20, 8 * 2**20 + 1, 20 * 2**20 + 17])
def test_large_files_travel_both_ways_unchanged(folder, tmp_path, size):
    sent, received = tmp_path / "sent", tmp_path / "new" / "received"
    sent.write_bytes(os.urandom(size))
    file = folder / "large"
    file.upload_from(sent)
    assert file.size() == size
    file.download_to(received)
    assert received.read_bytes() == sent.read_bytes()
    assert [path.name for path in received.parent.iterdir()] == ["received"]


def test_an_opened_file_can_be_sought(folder):
    data = os.urandom(9 * 2**20)
    (folder / "large").write_bytes(data)
    with (folder / "large").open() as stream:
        stream.seek(5 * 2**20)
        assert stream.read(10) == data[5 * 2**20 :][:10]
        stream.seek(-4, os.SEEK_END)
        assert stream.read() == data[-4:]
        assert stream.read() == b""
        stream.seek(0)
        assert stream.read() == data


def test_reading_a_stream_to_its_end_costs_a_request_a_part(faulty_s3, s3_root):
    data = os.urandom(20 * 2**20)
    file = Place(s3_root) / "large"
    file.write_bytes(data)
    with file.open() as stream:
        assert stream.read() == data
    assert faulty_s3.count("GET", "large") <= 4


def test_places_are_opened_for_reading_only(folder):
    with pytest.raises(ValueError, match="write_bytes"):
        (folder / "a").open("wb")


@pytest.mark.parametrize("name", ["", "..", "a/../b", "/a", "a//b", "a/", "."])
def test_a_name_cannot_climb(folder, name):
    with pytest.raises(ValueError, match="not a name below"):
        folder / name


def test_a_place_survives_pickling(folder):
    (folder / "a").write_bytes(b"1")
    assert pickle.loads(pickle.dumps(folder / "a")).read_bytes() == b"1"
    assert pickle.loads(pickle.dumps(folder)) == folder


def test_a_relative_path_does_not_follow_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = Place("./root") / "a"
    place.write_bytes(b"1")
    monkeypatch.chdir("/")
    assert place.read_bytes() == b"1"
    assert place.uri == str(tmp_path / "root" / "a")
    assert Place(f"file://{tmp_path}/root/a").read_bytes() == b"1"


def test_no_local_folder_is_made_of_a_mangled_uri():
    with pytest.raises(BadInput, match=r"write s3://bucket/prefix"):
        Place(Path("s3://bucket/prefix"))


@pytest.mark.parametrize(
    "uri, remedy",
    [
        ("gs://bucket/x", "gs:// is not supported; give a local path or s3://"),
        ("s3:///x", "no bucket named; write s3://bucket/prefix"),
    ],
)
def test_other_schemes_are_bad_input(uri, remedy):
    with pytest.raises(BadInput, match=remedy):
        Place(uri)


@pytest.mark.parametrize(
    "use",
    [
        Place.exists,
        Place.read_bytes,
        Place.list,
        Place.is_folder,
        Place.open,
        lambda p: list(p.walk()),
        lambda p: p.write_bytes(b""),
        Place.delete,
        lambda p: localise(p.uri),
    ],
)
def test_a_missing_bucket_is_named_and_never_created(s3_client, use):
    with pytest.raises(BadInput, match="there is no bucket 'mistyped'") as caught:
        use(Place("s3://mistyped/root"))
    assert "\n" not in str(caught.value)
    assert "mistyped" not in [bucket["Name"] for bucket in s3_client.list_buckets()["Buckets"]]


def test_a_file_is_localised_with_its_content(folder):
    (folder / "data.jsonl").write_bytes(b"{}")
    path = localise((folder / "data.jsonl").uri)
    assert path.name == "data.jsonl"
    assert path.read_bytes() == b"{}"


def test_a_folder_is_localised_whole(folder):
    for name in ("config.json", "deep/weights.bin"):
        (folder / name).write_bytes(name.encode())
    path = localise(folder.uri)
    assert path.name == "folder"
    assert (path / "config.json").read_bytes() == b"config.json"
    assert (path / "deep/weights.bin").read_bytes() == b"deep/weights.bin"


def test_localising_what_is_missing_is_bad_input(folder):
    with pytest.raises(BadInput, match="no such"):
        localise((folder / "missing").uri)


def test_an_object_is_downloaded_once_until_it_changes(faulty_s3, s3_root):
    file = Place(s3_root) / "data.jsonl"
    file.write_bytes(b"first")
    assert localise(file.uri).read_bytes() == localise(file.uri).read_bytes() == b"first"
    assert faulty_s3.count("GET", "data.jsonl") == 1
    file.write_bytes(b"second")
    assert localise(file.uri).read_bytes() == b"second"
    assert faulty_s3.count("GET", "data.jsonl") == 2


def test_the_cache_is_swept_by_age(s3_root):
    file = Place(s3_root) / "data.jsonl"
    file.write_bytes(b"12345")
    copy = localise(file.uri)
    assert sweep_cache(older_than=3600) == 0
    assert copy.exists()
    day_ago = copy.stat().st_mtime - 86400
    os.utime(copy, (day_ago, day_ago))
    assert sweep_cache(older_than=3600) == 5
    assert not copy.exists()
    assert list((cache_dir() / "copies").iterdir()) == []
    assert localise(file.uri).read_bytes() == b"12345"


@pytest.mark.parametrize(
    "uri", ["s3://AKIAIOSFODNN7EXAMPLE:SECRETwJalrXU@bucket/x", "s3://key:SECRETwJalrXU/x", "s3://SECRETwJalrXU@b"]
)
def test_credentials_in_a_bucket_are_refused_and_not_repeated(uri):
    with pytest.raises(BadInput, match="carries credentials; .*AWS_PROFILE") as caught:
        Place(uri)
    assert "SECRETwJalrXU" not in str(caught.value)


def test_a_folder_where_a_file_is_read_is_one_line(tmp_path):
    with pytest.raises(BadInput, match="is a folder where a file is expected; move it away"):
        Place(tmp_path).read_bytes()


def test_a_circle_of_links_is_passed_over_or_said(tmp_path):
    (tmp_path / "a").symlink_to("a")
    with pytest.raises(StorageFault, match="lead in a circle"):
        list(Place(tmp_path).walk())
