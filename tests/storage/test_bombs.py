"""Files larger inside than outside, that never end, or nested without end: one line each, and no more memory."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foretune.storage import packed
from foretune.storage.datasets import dataset_digest, read_rows
from foretune.storage.errors import BadInput


@pytest.fixture(autouse=True)
def smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "UNPACKED_BYTES", 20 * 10**6)


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.json.gz", "rows.csv.gz", "rows.jsonl.zst", "rows.csv.zst"])
def test_a_bomb_is_not_unpacked(tmp_path: Path, name: str):
    path = tmp_path / name
    content = b'{"text": "a"}\n' * 10**7
    zstd = name.endswith(".zst")
    path.write_bytes(pa.compress(content, codec="zstd", asbytes=True) if zstd else gzip.compress(content))
    with pytest.raises(BadInput, match=r"more than 20 MB once unpacked, from 0.\d MB; look at it, and unpack"):
        read_rows(str(path))


@pytest.mark.parametrize("stored", [True, False])
def test_a_parquet_bomb_is_not_unpacked(tmp_path: Path, stored: bool):
    word = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array(["a" * 10**6]))
    pq.write_table(pa.table({"text": word}), tmp_path / "rows.parquet", store_schema=stored)
    with pytest.raises(BadInput, match=r"MB of Parquet cannot be unpacked \(its rows are more than 20 MB\); split it"):
        read_rows(str(tmp_path / "rows.parquet"))


def test_a_line_without_end_is_not_read(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n{"text": "' + "word " * 4 * 10**6 + '"}\n')
    with pytest.raises(BadInput, match=r"line 2 has more than 16 million characters; split the row"):
        read_rows(str(path))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("1e9999", r"line 1 is not JSON \(1e9999 is no JSON value\)"),
        ("9" * 100_000, r"line 1 is not JSON \(Exceeds the limit [^;]*digits\); mend it"),
        ("[" * 500 + "]" * 500, "row 1 is nested more than 64 levels deep"),
        ("[" * 10**6, r"line 1 is not JSON \(nested too deeply\); mend it"),
    ],
)
def test_numbers_and_nesting_end(tmp_path: Path, value: str, said: str):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"text": "a", "x": {value}}}\n')
    with pytest.raises(BadInput, match=said):
        read_rows(str(path))


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_only_regular_files_are_read(tmp_path: Path, make):
    path = tmp_path / "rows.jsonl"
    make(path)
    for read in (read_rows, dataset_digest):
        with pytest.raises(BadInput, match=r"rows.jsonl: is a pipe or a device; give a regular file"):
            read(str(path))
