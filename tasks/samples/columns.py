"""Arrow columns from Python values without pandas, whose import `pyarrow.array` costs half a second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

_NUMBERS = {
    "int32": np.int32,
    "int64": np.int64,
    "uint32": np.uint32,
    "uint64": np.uint64,
    "double": np.float64,
}


def record_batch(records: Sequence[dict[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
    """Records as one batch; a key that a record lacks is null. At most 2 GiB of text per column."""
    import pyarrow as pa

    arrays = [column([record.get(field.name) for record in records], field.type) for field in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Values, None among them, as an array of numbers, truth values, strings, lists or structs."""
    import pyarrow as pa

    missing = np.fromiter((value is None for value in values), bool, len(values))
    valid = _bits(~missing) if missing.any() else None
    if pa.types.is_list(kind):
        offsets = _offsets([0 if value is None else len(value) for value in values])
        items = column([item for value in values if value is not None for item in value], kind.value_type)
        return pa.Array.from_buffers(kind, len(values), [valid, offsets], children=[items])
    if pa.types.is_struct(kind):
        fields = [column([None if v is None else v[f.name] for v in values], f.type) for f in kind]
        return pa.Array.from_buffers(kind, len(values), [valid], children=fields)
    if pa.types.is_string(kind):
        encoded = [b"" if value is None else value.encode() for value in values]
        offsets, data = _offsets(list(map(len, encoded))), pa.py_buffer(b"".join(encoded))
        return pa.Array.from_buffers(kind, len(values), [valid, offsets, data])
    filled = [0 if value is None else value for value in values] if missing.any() else values
    if pa.types.is_boolean(kind):
        return pa.Array.from_buffers(kind, len(values), [valid, _bits(np.array(filled, dtype=bool))])
    data = pa.py_buffer(np.array(filled, dtype=_NUMBERS[str(kind)]))
    return pa.Array.from_buffers(kind, len(values), [valid, data])


def _bits(flags: np.ndarray) -> pa.Buffer:
    import pyarrow as pa

    return pa.py_buffer(np.packbits(flags, bitorder="little"))


def _offsets(lengths: Sequence[int]) -> pa.Buffer:
    import pyarrow as pa

    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    if offsets[-1] >= 2**31:
        raise ValueError(f"{offsets[-1]} bytes or items in one column batch; the limit is 2 GiB")
    return pa.py_buffer(offsets.astype(np.int32))
