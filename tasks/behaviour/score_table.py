"""The table of one suite's items under one model, the same for every way of scoring them."""

from __future__ import annotations

from typing import Any

from foretune.tasks.behaviour.items import SuiteItems


def table_of(items: SuiteItems, scored: list[Any]) -> Any:
    """The items' table, in their order."""
    rows = [
        {
            "item": item.name,
            "digest": item.digest,
            "scorer": item.scorer,
            "question": item.question,
            "score": each and each.score,
            "margin": each and each.margin,
            "right_by_sum": each and each.right_by_sum,
            "log_likelihoods": list(each.log_likelihoods) if each else [],
            "tokens": list(each.tokens) if each else [],
            "answer": each and each.answer,
        }
        for item, each in zip(items.items, scored, strict=True)
    ]
    return table_of_rows(rows)


def table_of_rows(rows: list[dict[str, Any]]) -> Any:
    """Rows with these columns, of whoever has scored them."""
    import pyarrow as pa

    schema = pa.schema(
        {
            "item": pa.string(),
            "digest": pa.string(),
            "scorer": pa.string(),
            "question": pa.string(),
            "score": pa.float64(),
            "margin": pa.float64(),
            "right_by_sum": pa.bool_(),
            "log_likelihoods": pa.list_(pa.float64()),
            "tokens": pa.list_(pa.int64()),
            "answer": pa.string(),
        }
    )
    return pa.Table.from_pylist(rows, schema=schema)
