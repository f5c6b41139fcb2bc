"""The feature table as Parquet, for other programs."""

from __future__ import annotations

import io
from typing import Any

from foretune.tasks.report.feature_table import NUMBERS, FeatureTable, feature_record


def parquet_bytes(table: FeatureTable) -> bytes:
    """A line per feature that fires: the columns of its record, contexts and neighbours as lists of structs."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema()
    records = [_line(feature_record(table, place)) for place in range(len(table))]
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records, schema), out)
    return out.getvalue()


def _line(record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "label": record["label"] or None}


def _schema() -> Any:
    import pyarrow as pa

    words, counts = pa.list_(pa.string()), pa.list_(pa.int64())
    near = pa.struct([("feature", pa.int64()), ("label", pa.string()), ("cosine", pa.float64())])
    context = pa.struct([("row", pa.int64()), ("text", pa.string()), ("base", pa.float64()), ("new", pa.float64())])
    columns = {
        "feature": pa.int64(),
        "label": pa.string(),
        "named": pa.string(),
        "verdict": pa.string(),
        "family": pa.int64(),
        "members": pa.int64(),
        **dict.fromkeys(NUMBERS, pa.float64()),
        "promoted": words,
        "suppressed": words,
        "neighbours": pa.list_(near),
        "largest_activation": pa.float64(),
        "histogram_base": counts,
        "histogram_new": counts,
        "contexts": pa.list_(context),
    }
    return pa.schema(columns)
