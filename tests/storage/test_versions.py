"""The newest version of a dataset, on disk and in a bucket."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from foretune.storage.errors import BadInput
from foretune.storage.places import Place
from foretune.storage.versions import newest_version


def put(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}\n")
    return str(folder)


def test_a_file_is_its_own_newest_version(tmp_path):
    path = f"{put(tmp_path, 'a.jsonl')}/a.jsonl"
    assert newest_version(path) == path


def test_numbers_in_names_count_as_numbers(tmp_path):
    folder = put(tmp_path, "v9.jsonl", "v10.jsonl", "v2.jsonl")
    assert newest_version(folder) == f"{folder}/v10.jsonl"


def test_dated_folders_are_versions_and_other_files_are_not(tmp_path):
    folder = put(tmp_path, "2026-11-21/train.jsonl", "2026-11-22/train.parquet", "2026-11-23/notes.txt")
    assert newest_version(f"{folder}/") == f"{folder}/2026-11-22/train.parquet"


def test_a_glob_keeps_to_its_level(tmp_path):
    folder = put(tmp_path, "train-1.jsonl", "train-2.jsonl", "train-3/rows.jsonl", "heldout-9.jsonl")
    assert newest_version(f"{folder}/train-*.jsonl") == f"{folder}/train-2.jsonl"
    assert newest_version(f"{folder}/train-*/*.jsonl") == f"{folder}/train-3/rows.jsonl"


def test_among_equal_names_the_later_file_wins(tmp_path):
    folder = put(tmp_path, "v1.jsonl", "v01.jsonl")
    os.utime(tmp_path / "v01.jsonl", (1, 1))
    assert newest_version(folder) == f"{folder}/v1.jsonl"


def test_a_relative_glob_is_resolved_from_here(tmp_path, monkeypatch):
    put(tmp_path, "v1.jsonl")
    monkeypatch.chdir(tmp_path)
    assert newest_version("*.jsonl") == "./v1.jsonl"


@pytest.mark.parametrize("uri", ["", "/nowhere", "/*.txt"])
def test_nothing_that_fits_is_one_line(tmp_path, uri):
    put(tmp_path, "a.txt")
    with pytest.raises(BadInput, match="no dataset here; give a file, a folder or a glob"):
        newest_version(f"{tmp_path}{uri}")


def test_a_prefix_in_a_bucket_is_a_folder(s3_root):
    for name in ("v9.jsonl", "v10.jsonl"):
        (Place(s3_root) / "data" / name).write_bytes(b"{}\n")
    assert newest_version(f"{s3_root}/data") == f"{s3_root}/data/v10.jsonl"
    assert newest_version(f"{s3_root}/data/v9*") == f"{s3_root}/data/v9.jsonl"


@pytest.mark.parametrize(
    ("names", "newest"),
    [
        (["v1-00000-of-00002.jsonl", "v1-00001-of-00002.jsonl"], "v1-*-of-00002.jsonl"),
        (["a/part-00000.jsonl", "a/part-00001.jsonl", "b/part-00000.jsonl", "b/part-00001.jsonl"], "b/part-*.jsonl"),
        (["train.jsonl", "validation.jsonl", "test.jsonl"], "train.jsonl"),
        (["v1.jsonl", "v2.jsonl", "validation.jsonl"], "v2.jsonl"),
        (["validation.jsonl"], "validation.jsonl"),
    ],
)
def test_parts_are_one_version_and_splits_are_none(tmp_path, names, newest):
    assert newest_version(put(tmp_path, *names)) == f"{tmp_path}/{newest}"


def test_a_version_that_lacks_a_part_is_one_line(tmp_path):
    folder = put(tmp_path, "v1-00000-of-00002.jsonl", "v1-00001-of-00002.jsonl", "v2-00000-of-00002.jsonl")
    with pytest.raises(BadInput, match=r"v2-00000-of-00002.jsonl is one of 2 parts, and 1 is not there"):
        newest_version(folder)


def test_every_kind_that_is_read_is_a_version_and_what_describes_the_rows_is_none(tmp_path):
    folder = put(tmp_path, "v1.jsonl", "v3.csv.gz", "V2.JSONL", "zz/dataset_infos.json")
    assert newest_version(folder) == f"{folder}/v3.csv.gz"
