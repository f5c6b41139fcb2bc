"""Pass 0: what is wrong with the rows, before any model is loaded.

`shard_quality` looks at every row of a shard by itself; `reduce_quality` compares the rows and counts. What
shards hand over are per-row columns, so shards of any size give equal results.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foretune.tasks.quality.settings import QualitySettings

if TYPE_CHECKING:
    import pyarrow as pa


def shard_quality(table: pa.Table, settings: QualitySettings) -> pa.Table:
    """What every row of a `samples` table says by itself; columns as in `quality_rows.rows_schema`."""
    import pyarrow as pa

    from foretune.tasks.quality.diversity import signatures, word_hashes
    from foretune.tasks.quality.rows import RowRules, Texts, rows_schema
    from foretune.tasks.samples.columns import record_batch

    rules = RowRules(settings)
    records, word_sets = [], []
    for sample in table.to_pylist():
        texts = Texts.of(sample)
        records.append(rules.record_of(sample, texts))
        word_sets.append(sorted(texts.words()))
    hashed = word_hashes(word_sets)
    for record, hashes, signature in zip(records, hashed, signatures(hashed), strict=True):
        record |= {"words": hashes, "signature": signature}
    return pa.Table.from_batches([record_batch(records, rows_schema())])


@dataclass(frozen=True)
class Quality:
    """The dataset's quality: one row per sample, the counts, and what should make the user stop."""

    samples: pa.Table  # sorted by sample_id
    summary: dict[str, Any]
    signals: list[dict[str, Any]]  # name, severity, value, threshold, advice


def reduce_quality(partials: Sequence[pa.Table], settings: QualitySettings) -> Quality:
    """Put shards together; neither their number nor their order can be seen in the result."""
    import numpy as np
    import pyarrow as pa

    from foretune.tasks.quality.diversity import mean_overlap, near_duplicates
    from foretune.tasks.quality.summary import quality_signals, quality_summary

    # Copies come after the row that they copy, so that a cluster is named after an original.
    table = pa.concat_tables(partials).sort_by([("occurrence", "ascending"), ("sample_id", "ascending")])
    rows = table.drop_columns(["words", "signature"]).to_pylist()
    word_sets = [np.array(hashes, dtype=np.uint64) for hashes in table["words"].to_pylist()]
    signed = np.array(table["signature"].to_pylist(), dtype=np.uint32)
    first = near_duplicates(word_sets, signed, settings.near_duplicate_jaccard)
    originals = _originals(rows)
    for position, row in enumerate(rows):
        original = originals.get(row["sample_id"]) or rows[first[position]]["sample_id"]
        row["duplicate_of"] = None if original == row["sample_id"] else original
        if row["duplicate_of"] and "exact_duplicate" not in row["flags"]:
            row["flags"].append("near_duplicate")
    for row in _contradictory(rows):
        row["flags"].append("contradictory")
    for row in rows:
        row["flags"] = settings.kept(row["flags"], row["sample_id"])
    clusters = _clusters(rows, first)
    rows.sort(key=lambda row: row["sample_id"])
    summary = quality_summary(rows, mean_overlap(word_sets), clusters, settings)
    return Quality(_samples_table(rows), summary, quality_signals(summary, settings))


def _originals(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """sample_id of every copy -> sample_id of the row that it copies."""
    first: dict[tuple[str | None, str], str] = {}
    copies = {}
    for row in rows:
        content = (row["prompt_digest"], row["completion_digest"])
        if row["occurrence"] == 0:
            first.setdefault(content, row["sample_id"])
        elif content in first:
            copies[row["sample_id"]] = first[content]
    return copies


def _contradictory(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that share a prompt with a row whose completion is another one."""
    by_prompt = defaultdict(list)
    for row in rows:
        if row["prompt_digest"]:
            by_prompt[row["prompt_digest"]].append(row)
    groups = (group for group in by_prompt.values() if len({row["completion_digest"] for row in group}) > 1)
    return [row for group in groups for row in group]


def _clusters(rows: Sequence[dict[str, Any]], first: Sequence[int]) -> list[list[int]]:
    """Row numbers of every cluster of alike rows, the largest cluster first."""
    members = defaultdict(list)
    for position, row in enumerate(rows):
        members[first[position]].append(row["row"])
    clusters = [sorted(numbers) for numbers in members.values() if len(numbers) > 1]
    return sorted(clusters, key=lambda numbers: (-len(numbers), numbers))


def _samples_table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    import pyarrow as pa

    from foretune.tasks.quality.rows import rows_schema
    from foretune.tasks.samples.columns import record_batch

    internal = {"prompt_digest", "completion_digest", "words", "signature"}
    fields = [field for field in rows_schema() if field.name not in internal]
    return pa.Table.from_batches([record_batch(rows, pa.schema([*fields, ("duplicate_of", pa.string())]))])
