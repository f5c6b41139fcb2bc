"""Rows of a role of which some blocks are measured: the first by id, and more of them when more is wanted."""

from __future__ import annotations

import hashlib

import pytest

from foretune.storage.refs import ArtifactRef
from foretune.tasks.samples.role_rows import RoleRows
from foretune.tasks.samples.shards import ShardSettings
from foretune.tasks.samples.table import SampleIndex

SAMPLES = ArtifactRef(task="samples", key="0" * 40, uri="", sha256="")


def index_of_rows(rows: int, tokens: int) -> SampleIndex:
    """Rows whose ids are digests, each as long."""
    ids = sorted(hashlib.sha256(str(row).encode()).hexdigest() for row in range(rows))
    return SampleIndex(ids, list(range(rows)), [tokens] * rows, [True] * rows, "prompt_completion")


def rows_with(wanted: int | None, rows: int = 1_000) -> RoleRows:
    return RoleRows(SAMPLES, index_of_rows(rows, tokens=10), "encoding", ShardSettings(), wanted)


@pytest.mark.parametrize("wanted", [1, 128, 400, 999])
def test_blocks_are_measured_until_as_many_rows_as_wanted_are(wanted):
    rows = rows_with(wanted)
    assert wanted <= rows.measured_rows <= wanted + 32
    assert len(rows.trained_ids) == rows.measured_rows == sum(leaf.shard.rows for leaf in rows.leaves)
    assert rows.measured_rows + sum(block.shard.rows for block in rows.others) == 1_000


@pytest.mark.parametrize(("rows", "largest"), [(4_000, 100), (10_000, 64), (60_000, 100)])
def test_of_many_rows_blocks_stay_small_where_some_are_measured(rows, largest):
    some = rows_with(1_920, rows)
    assert max(node.shard.rows for node in some.nodes) <= largest
    assert 1_920 <= some.measured_rows < 2_048  # what is kept row by row
    assert len(rows_with(None, rows).nodes) == 64


def test_what_reads_no_model_maps_over_every_row():
    some = rows_with(128)
    assert sum(leaf.shard.rows for leaf in some.all_leaves) == 1_000
    assert {leaf.shard.prefix for leaf in some.leaves} < {leaf.shard.prefix for leaf in some.all_leaves}
    assert rows_with(None).leaves == rows_with(None).all_leaves


def test_more_rows_keep_the_blocks_of_fewer():
    few, more = ([node.identity() for node in rows_with(wanted).nodes] for wanted in (128, 400))
    assert more[: len(few)] == few


def test_all_rows_are_cut_as_they_were_without_a_number():
    assert rows_with(1_000).nodes == rows_with(None).nodes and not rows_with(None).others


def test_every_subset_lies_in_the_measured_rows():
    rows = rows_with(128)
    assert set(rows.subset(24, "evaluation").subset.ids) <= set(rows.trained_ids)
    assert set(rows.short_subset(24, "curvature", 12).subset.ids) <= set(rows.trained_ids)
    assert not set(rows.of_all(900, "half 0").subset.ids) <= set(rows.trained_ids)
