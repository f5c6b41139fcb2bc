"""One dataset in several files: joined in order, splits told apart, compressed or not; what is missing is one line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foretune.storage.datasets import dataset_at, dataset_digest, read_rows
from foretune.storage.errors import BadInput
from foretune.storage.parts import VALIDATION, other_splits
from foretune.storage.places import Place


def lines(*numbers: int) -> str:
    return "".join(json.dumps({"text": f"row {number}"}) + "\n" for number in numbers)


def put(folder: Path, **files: str) -> str:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_of_", "-of-").replace("_jsonl", ".jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(folder)


def texts(uri: str) -> list[str]:
    return [row["text"] for row in read_rows(uri)]


def test_parts_are_joined_in_the_order_of_their_numbers(tmp_path):
    folder = put(tmp_path, **{f"train-{n}_of_11_jsonl": lines(n) for n in (10, 9, 2, 1, 0, 3, 4, 5, 6, 7, 8)})
    assert texts(folder) == [f"row {n}" for n in range(11)]
    assert texts(f"{folder}/train-*.jsonl") == texts(f"{folder}/*") == texts(folder)


@pytest.mark.parametrize("names", [["part-00000.jsonl", "part-00001.jsonl"], ["0000.jsonl", "0001.jsonl"]])
def test_parts_without_a_count_are_parts_too(tmp_path, names):
    folder = put(tmp_path, **{f"data__{name}": lines(n) for n, name in enumerate(names)})
    assert texts(folder) == ["row 0", "row 1"]


def test_of_sparks_parts_an_empty_one_adds_nothing(tmp_path):
    name = "part-{}-tid-7.snappy.parquet"
    pq.write_table(pa.table({"text": ["row 0"]}), tmp_path / name.format("00000"))
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / name.format("00001"))
    pq.write_table(pa.table({"text": ["row 1"]}), tmp_path / name.format("00002"))
    (tmp_path / "_SUCCESS").write_text("")
    assert texts(str(tmp_path)) == ["row 0", "row 1"]


def test_a_missing_part_is_one_line(tmp_path):
    folder = put(tmp_path, train_00000_of_00003_jsonl=lines(0), train_00002_of_00003_jsonl=lines(2))
    for uri in (folder, f"{folder}/*.jsonl"):
        with pytest.raises(BadInput, match="train_00000-of-00003.jsonl is one of 3 parts, and 1 is not there; copy it"):
            read_rows(uri)


def test_a_folder_of_splits_stands_for_its_training_rows(tmp_path):
    folder = put(tmp_path, train_jsonl=lines(0), validation_jsonl=lines(1), test_jsonl=lines(2))
    assert texts(folder) == ["row 0"]
    assert dataset_at(folder, VALIDATION) == f"{folder}/validation.jsonl"
    assert other_splits(folder, (".jsonl",)) == ["test", "validation"]
    (tmp_path / "validation.jsonl").unlink()
    assert dataset_at(folder, VALIDATION) == f"{folder}/test.jsonl"


def test_splits_may_be_folders(tmp_path):
    folder = put(tmp_path, **{f"{split}__0000.jsonl": lines(n) for n, split in enumerate(("test", "train"))})
    assert texts(folder) == ["row 1"]


def test_several_datasets_in_a_folder_are_named(tmp_path):
    folder = put(tmp_path, a_jsonl=lines(0), b_jsonl=lines(1))
    with pytest.raises(BadInput, match=r"2 datasets \(a.jsonl, b.jsonl\), which are no parts of one; name a file"):
        read_rows(folder)
    with pytest.raises(BadInput, match="no dataset here"):
        read_rows(f"{folder}/*.parquet")


@pytest.mark.parametrize(
    "infos", [{"default": {"splits": {"train": {"num_examples": 2}}}}, {"splits": {"train": {"num_examples": 2}}}]
)
def test_the_rows_are_counted_against_what_datasets_wrote(tmp_path, infos):
    folder = put(tmp_path, **{"train-00000_of_00001_jsonl": lines(0, 1), "dataset_infos.json": json.dumps(infos)})
    assert len(read_rows(folder)) == 2
    put(tmp_path, **{"train-00000_of_00001_jsonl": lines(0)})
    with pytest.raises(BadInput, match="1 rows in 1 files, but 2 by the dataset_info beside them; copy them again"):
        read_rows(folder)


def test_a_dataset_saved_to_disk_is_read(tmp_path):
    from datasets import Dataset

    rows = [{"text": f"row {n}", "n": n} for n in range(600)]
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved", num_shards=2)
    assert read_rows(str(tmp_path / "saved")) == rows


def test_the_digest_is_of_the_content_and_of_the_order(tmp_path):
    one = put(tmp_path / "one", train_0_of_2_jsonl=lines(0), train_1_of_2_jsonl=lines(1))
    other = put(tmp_path / "other", a_0_of_2_jsonl=lines(0), a_1_of_2_jsonl=lines(1))
    turned = put(tmp_path / "turned", train_0_of_2_jsonl=lines(1), train_1_of_2_jsonl=lines(0))
    assert dataset_digest(one) == dataset_digest(other) != dataset_digest(turned)
    single = put(tmp_path / "single", train_jsonl=lines(0))
    assert dataset_digest(single) == dataset_digest(f"{single}/train.jsonl")


def test_characters_of_a_pattern_in_names_mean_themselves(tmp_path):
    folder = put(tmp_path / "a[1]", **{"b[2]-0_of_2_jsonl": lines(0), "b[2]-1_of_2_jsonl": lines(1)})
    address = dataset_at(folder)
    assert address.endswith("/a[1]/b[[]2]-*-of-2.jsonl")
    assert texts(address) == ["row 0", "row 1"]


def test_parts_in_a_bucket(s3_root):
    for n in (1, 0):
        (Place(s3_root) / "data" / f"train-0000{n}-of-00002.jsonl").write_bytes(lines(n).encode())
    assert texts(f"{s3_root}/data") == texts(f"{s3_root}/data/train-*") == ["row 0", "row 1"]


def zstd(text: str) -> bytes:
    return pa.compress(text.encode(), codec="zstd", asbytes=True)


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.ndjson.zst", "a.json.zst", "A.JSONL.ZST"])
def test_zstd_is_read_in_one_frame_or_in_several(tmp_path, name):
    (tmp_path / name).write_bytes(zstd(lines(0)) + zstd(lines(1)))
    assert texts(str(tmp_path / name)) == ["row 0", "row 1"]


def test_compressed_parts_are_joined(tmp_path):
    (tmp_path / "c-0-of-2.csv.gz").write_bytes(gzip.compress(b"text\nrow 0\n"))
    (tmp_path / "c-1-of-2.csv.gz").write_bytes(gzip.compress(b"text\nrow 1\n"))
    assert texts(str(tmp_path)) == ["row 0", "row 1"]


@pytest.mark.parametrize(
    "spoiled", [lambda data: data[:-4], lambda data: b"no zstd", lambda data: data[:9] + b"zz" + data[9:]]
)
def test_a_spoiled_zstd_file_is_one_line(tmp_path, spoiled):
    (tmp_path / "a.jsonl.zst").write_bytes(spoiled(zstd(lines(*range(100)))))
    with pytest.raises(BadInput, match="not a whole zstd file .*; copy it again"):
        read_rows(str(tmp_path / "a.jsonl.zst"))


def test_a_line_of_a_zstd_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "a.jsonl.zst").write_bytes(pa.compress(b'{"text": "a"}\n\xff\n', codec="zstd", asbytes=True))
    with pytest.raises(BadInput, match="line 2 is not UTF-8"):
        read_rows(str(tmp_path / "a.jsonl.zst"))
