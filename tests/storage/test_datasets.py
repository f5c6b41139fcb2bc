"""Datasets: every known kind gives the same rows, and every way to be wrong gives one line."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from hashlib import sha256

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foretune.storage.datasets import dataset_digest, read_rows
from foretune.storage.errors import BadInput
from foretune.storage.places import Place

ROWS = [
    {"prompt": 'Grüße, "you"\nand line two', "completion": "a,b"},
    {"prompt": "x" * 200_000, "completion": ""},
    {"prompt": "line separator \u2028 inside", "completion": "🙂"},
]


def jsonl() -> bytes:
    return b"\n".join(json.dumps(row, ensure_ascii=False).encode() for row in ROWS) + b"\n"


def csv_file() -> bytes:
    import csv
    import io

    text = io.StringIO()
    writer = csv.DictWriter(text, ROWS[0])
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


def parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(ROWS), sink)
    return sink.getvalue().to_pybytes()


KINDS = {
    "d.jsonl": jsonl,
    "d.JSONL": jsonl,
    "d.ndjson": jsonl,
    "d.jsonl.gz": lambda: gzip.compress(jsonl()),
    "crlf.jsonl": lambda: jsonl().replace(b"\n", b"\r\n"),
    "gaps.jsonl": lambda: b"\n  \n" + jsonl().replace(b"}\n", b"}\n\n"),
    "mark.jsonl": lambda: b"\xef\xbb\xbf" + jsonl(),
    "d.json": lambda: json.dumps(ROWS).encode(),
    "field.json": lambda: json.dumps({"version": "1", "data": ROWS}).encode(),
    "d.csv": csv_file,
    "mark.csv": lambda: b"\xef\xbb\xbf" + csv_file(),
    "d.csv.gz": lambda: gzip.compress(csv_file()),
    "d.parquet": parquet,
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name):
    (tmp_path / name).write_bytes(KINDS[name]())
    assert read_rows(str(tmp_path / name)) == ROWS


@pytest.mark.parametrize("name", ["d.jsonl.gz", "d.parquet"])
def test_rows_come_from_s3_too(s3_root, name):
    file = Place(s3_root) / name
    data = KINDS[name]()
    file.write_bytes(data)
    assert read_rows(file.uri) == ROWS
    assert dataset_digest(file.uri) == sha256(data).hexdigest()


GOOD = b'{"text": "a"}\n'

WRONG = {
    "list row": ("d.jsonl", GOOD + b"\n[1]\n", "line 3 is a list; every row must be an object"),
    "string row": ("d.jsonl", b'"a"\n', "line 1 is a string; every row"),
    "null row": ("d.jsonl", GOOD + b"null", "line 2 is null"),
    "number row": ("d.jsonl", b"1.5", "line 1 is a number"),
    "torn row": ("d.jsonl", GOOD * 6 + b'{"text": "a\n', r"line 7, column 10 is not JSON \(.+\); mend"),
    "NaN": ("d.jsonl", GOOD + b'{"x": NaN}\n', r"line 2 is not JSON \(NaN is no JSON value\)"),
    "deep row": ("d.jsonl", GOOD + b"[" * 100_000, "line 2 is not JSON"),
    "latin-1": ("d.jsonl", GOOD * 2 + '{"text": "ü"}'.encode("latin-1"), "line 3 is not UTF-8 text"),
    "latin-1 gz": ("d.jsonl.gz", gzip.compress(GOOD + b"\xff\n"), "line 2 is not UTF-8 text"),
    "utf-16": ("d.jsonl", GOOD.decode().encode("utf-16"), "line 1 is not UTF-8 text .*save it as UTF-8"),
    "empty": ("d.jsonl", b"", "the dataset is empty; give at least one row"),
    "blank": ("d.jsonl", b"\n \n", "the dataset is empty"),
    "empty list": ("d.json", b"[]", "the dataset is empty"),
    "empty json": ("d.json", b"", "line 1, column 1 is not JSON"),
    "header only": ("d.csv", b"a,b\n", "the dataset is empty"),
    "torn gz": ("d.jsonl.gz", gzip.compress(GOOD * 99)[:-9], "not a whole gzip file .*copy it again"),
    "not gz": ("d.jsonl.gz", GOOD, "not a whole gzip file"),
    "torn json": ("d.json", b'[{"a": 1},\n {"a": }]', r"line 2, column 8 is not JSON"),
    "scalar json": ("d.json", b'"text"', "a string at the top; give a list of objects"),
    "two lists": ("d.json", b'{"train": [], "test": []}', "an object with lists in train, test; give a list"),
    "no list": ("d.json", b'{"a": 1}', "an object with no list"),
    "scalar item": ("d.json", b'[{"a": 1}, 2]', "item 2 is a number; every row must be an object"),
    "short line": ("d.csv", b'a,b\n"x\ny",1\n2\n', "line 4 has 1 fields, the header has 2; quote"),
    "long line": ("d.csv", b"a,b\n1,2,3\n", "line 2 has 3 fields, the header has 2"),
    "two names": ("d.csv", b"a,b,a\n1,2,3\n", "line 1 names 'a' twice"),
    "open quote": ("d.csv", b'a,b\n1,"2\n', r"line 2 is not CSV \(.+\); mend that line"),
    "not parquet": ("d.parquet", GOOD * 9, "not a whole Parquet file .*write it again"),
    "torn parquet": ("d.parquet", parquet()[:-50], "not a whole Parquet file"),
    "broken footer": ("d.parquet", b"PAR1" + b"\xff" * 60 + b"\x3c\0\0\0PAR1", "not a whole Parquet file"),
    "text": ("d.txt", GOOD, r"unknown kind of file '\.txt'; known are \.jsonl, .*\.csv, \.parquet"),
    "zip": ("d.parquet.gz", GOOD, r"unknown kind of file '\.parquet\.gz'"),
    "no extension": ("data", GOOD, "unknown kind of file ''"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_one_line(tmp_path, case):
    name, data, said = WRONG[case]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BadInput, match=said) as caught:
        read_rows(str(tmp_path / name))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / name))


def test_a_missing_file_is_named(tmp_path, s3_root):
    for uri in (str(tmp_path / "d.jsonl"), f"{s3_root}/d.jsonl"):
        with pytest.raises(BadInput, match=r"d\.jsonl: no such") as caught:
            read_rows(uri)
        assert uri in str(caught.value)
    with pytest.raises(BadInput, match="there is no bucket 'mistyped'"):
        read_rows("s3://mistyped/d.jsonl")


def test_a_folder_is_not_a_dataset(tmp_path):
    with pytest.raises(BadInput, match=r"no dataset here; give a file, a folder or a glob of its parts"):
        read_rows(str(tmp_path))


def test_text_is_read_without_a_data_frame_library(tmp_path):
    for name in ("d.jsonl", "d.json", "d.csv"):
        (tmp_path / name).write_bytes(KINDS[name]())
    code = f"""
import sys
from foretune.storage.datasets import read_rows
for name in ("d.jsonl", "d.json", "d.csv"):
    assert len(read_rows({str(tmp_path)!r} + "/" + name)) == 3
print(sorted({{"pandas", "pyarrow", "numpy"}} & set(sys.modules)))
"""
    environment: dict[str, str] = {}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
