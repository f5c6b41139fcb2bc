"""Rows of a Parquet file, unpacked in a child: a megabyte of it can hold gigabytes, and its footer need not say so.

The child reads batches of few rows and sends them on as an Arrow stream until their sum is more than is allowed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from foretune.storage.confinement import confined, keep_within_limits
from foretune.storage.errors import BadInput
from foretune.storage.json_columns import Decode, decoders

BATCH_ROWS = 256
SPARE = 3 * 2**30
"""Bytes of address space beside the rows: the libraries, and one page of a column, which may have 2 GiB."""


def parquet_rows(uri: str, path: Path, most: int) -> list[dict[str, Any]]:
    """Every row; at most `most` bytes of them. BadInput for what is too large, too slow or no whole Parquet file."""
    return [row for rows in parquet_batches(uri, path, most) for row in rows]


def parquet_batches(uri: str, path: Path, most: int) -> Iterator[list[dict[str, Any]]]:
    """The rows of `parquet_rows`, a batch of the child's at a time."""
    import pyarrow as pa

    seconds = 60 + most / 2e7
    said = json.dumps({"path": str(path), "most": most})
    with confined(__name__, said, memory=SPARE + 2 * most, cpu_seconds=seconds) as child, child.within(10 * seconds):
        try:
            with pa.ipc.open_stream(child.takes) as stream:
                parsed = decoders(stream.schema)
                for batch in stream:
                    yield _rows_of(batch.to_pylist(), parsed)
        except (pa.ArrowException, OSError):
            pass  # the child ended early, and says below why
        fault = child.errors.read().decode(errors="replace").strip().splitlines()
        why = child.end() if child.process.wait() else ""
    if not why:
        return
    known = json.loads(fault[-1]) if fault and fault[-1].startswith("{") else {}
    raise BadInput(f"{uri}: {_sentence(known, why, path.stat().st_size, most)}")


def _rows_of(rows: list[dict[str, Any]], parsed: dict[str, Decode]) -> list[dict[str, Any]]:
    return [row | {name: decode(row[name]) for name, decode in parsed.items()} for row in rows] if parsed else rows


def _sentence(known: dict[str, Any], why: str, size: int, most: int) -> str:
    kind, said = known.get("kind"), known.get("said", "")
    if kind == "denied":
        return f"cannot be read ({said}); check its permissions"
    if kind == "broken":
        return f"not a whole Parquet file ({said}); write it again"
    if kind == "large":
        why = f"its rows are more than {most / 1e6:,.0f} MB"
    return f"{size / 1e6:,.1f} MB of Parquet cannot be unpacked ({why}); split it, or give the rows as JSONL"


def _send(path: str, most: int) -> dict[str, Any] | None:
    """In the child. What went wrong, or None."""
    import pyarrow as pa

    try:
        with _opened(path) as file:
            schema, batches = _content(file)
            with pa.ipc.new_stream(sys.stdout.buffer, schema) as stream:
                for batch in batches:
                    most -= 64 * batch.num_rows + sum(map(_weight, batch.columns))
                    if most < 0:
                        return {"kind": "large"}
                    stream.write_batch(batch)
    except PermissionError as error:
        return {"kind": "denied", "said": error.strerror}
    except (MemoryError, pa.ArrowMemoryError):
        return {"kind": "memory"}
    except (pa.ArrowException, OSError) as error:  # a broken footer is OSError, a missing one ArrowInvalid
        return {"kind": "broken", "said": " ".join(str(error).split())}
    return None


def _opened(path: str) -> Any:
    """A Parquet file, or what `datasets` keeps its rows in: an Arrow stream, rarely an Arrow file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.lower().endswith(".arrow"):
        return pq.ParquetFile(path, pre_buffer=False)
    source = pa.OSFile(path)
    head = source.read(6)
    source.seek(0)
    return pa.ipc.open_file(source) if head == b"ARROW1" else pa.ipc.open_stream(source)


def _content(file: Any) -> tuple[Any, Iterator[Any]]:
    """The schema and the rows, few at a time."""
    if hasattr(file, "iter_batches"):
        return file.schema_arrow, file.iter_batches(BATCH_ROWS, use_threads=False)
    count = getattr(file, "num_record_batches", None)
    batches = file if count is None else (file.get_batch(number) for number in range(count))
    return file.schema, (
        batch.slice(start, BATCH_ROWS) for batch in batches for start in range(0, batch.num_rows, BATCH_ROWS)
    )


def _weight(array: Any) -> int:
    """Bytes of a column as Python values, about: nulls in lists and repeated words cost nothing in Arrow."""
    import pyarrow as pa

    kind = array.type
    if pa.types.is_dictionary(kind):
        return _weight(array.dictionary_decode())
    inner = []
    if pa.types.is_struct(kind):
        inner = [array.field(place) for place in range(kind.num_fields)]
    elif pa.types.is_map(kind):
        inner = [array.keys, array.items]
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = [array.flatten()]
    return 8 * len(array) + (sum(map(_weight, inner)) if inner else array.nbytes)


if __name__ == "__main__":
    keep_within_limits()
    wrong = _send(**json.loads(sys.argv[1]))
    if wrong is not None:
        print(json.dumps(wrong), file=sys.stderr, flush=True)
        sys.stdout = None  # type: ignore[assignment] - a broken pipe at exit is no news
    sys.exit(3 if wrong is not None else 0)
