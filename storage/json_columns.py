"""Columns that hold JSON as text by their declared type: what datasets' `Json()` writes into Parquet."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

Decode = Callable[[Any], Any]


def decoders(schema: pa.Schema) -> dict[str, Decode]:
    """For every column with JSON in it, at whatever depth, what makes its values of what Arrow gives."""
    found = {field.name: _decoder(field.type) for field in schema}
    return {name: decode for name, decode in found.items() if decode is not None}


def _decoder(kind: pa.DataType) -> Decode | None:
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        return _parsed if kind.extension_name == "arrow.json" else _decoder(kind.storage_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = _decoder(kind.value_type)
        return None if inner is None else lambda value: None if value is None else [inner(each) for each in value]
    if pa.types.is_struct(kind):
        fields = {kind.field(n).name: _decoder(kind.field(n).type) for n in range(kind.num_fields)}
        parts = {name: decode for name, decode in fields.items() if decode is not None}
        return (lambda value: _in_fields(value, parts)) if parts else None
    return None


def _parsed(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _in_fields(value: Any, parts: dict[str, Decode]) -> Any:
    if value is None:
        return None
    return value | {name: decode(value[name]) for name, decode in parts.items()}
