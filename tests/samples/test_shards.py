"""The prefix tree: a partition that ignores order, changes locally and stays bounded."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretune.storage.errors import StorageFault
from foretune.tasks.samples.shards import Shard, bottom_k, read_shard, read_subset, rows_of_shard, shard_tree, subset_of

IDS = st.sets(st.integers(0, 400), max_size=120).map(
    lambda numbers: [hashlib.sha256(str(number).encode()).hexdigest() for number in numbers]
)
ROWS, DEPTH = st.integers(1, 20), st.integers(0, 8)


def members(ids: list[str], shard: Shard) -> list[str]:
    """By the definition: ids whose first bits are the prefix."""
    return sorted(i for i in ids if f"{int(i, 16):0256b}".startswith(shard.prefix))


@given(IDS, ROWS, DEPTH)
def test_every_id_is_in_exactly_one_shard(ids, max_rows, max_depth):
    shards = shard_tree(ids, max_rows, max_depth)
    assert [i for shard in shards for i in members(ids, shard)] == sorted(ids)
    assert [shard.rows for shard in shards] == [len(members(ids, shard)) for shard in shards]


@given(IDS, ROWS, DEPTH)
def test_a_shards_rows_lie_together(ids, max_rows, max_depth):
    ids = sorted(ids)
    for shard in shard_tree(ids, max_rows, max_depth):
        rows = rows_of_shard(ids, shard)
        assert ids[rows.start : rows.stop] == members(ids, shard)


@given(IDS, ROWS, DEPTH, st.randoms(use_true_random=False))
def test_the_order_of_ids_does_not_change_the_shards(ids, max_rows, max_depth, random):
    assert shard_tree(ids, max_rows, max_depth) == shard_tree(random.sample(ids, len(ids)), max_rows, max_depth)


@given(IDS, ROWS, DEPTH)
def test_shards_are_as_large_as_the_bounds_allow(ids, max_rows, max_depth):
    shards = shard_tree(ids, max_rows, max_depth)
    assert len(shards) <= 2**max_depth
    assert all(shard.rows > 0 for shard in shards)
    assert all(shard.rows <= max_rows or len(shard.prefix) == max_depth for shard in shards)
    parents = (Shard(prefix=shard.prefix[:-1], digest="", rows=0) for shard in shards if shard.prefix)
    assert all(len(members(ids, parent)) > max_rows for parent in parents)


@given(IDS, ROWS, DEPTH, st.data())
def test_removing_ids_makes_at_most_as_many_new_shards(ids, max_rows, max_depth, data):
    gone = data.draw(st.sets(st.sampled_from(ids), max_size=5)) if ids else set()
    before = shard_tree(ids, max_rows, max_depth)
    after = shard_tree([i for i in ids if i not in gone], max_rows, max_depth)
    new = [shard for shard in after if shard not in before]
    assert len(new) <= len(gone)
    for shard in new:
        touched = [old for old in before if old.prefix.startswith(shard.prefix)]
        assert any(set(members(ids, old)) & gone for old in touched)


def test_the_digest_names_the_set():
    one, other = (shard_tree([hashlib.sha256(text).hexdigest()], 1, 0)[0] for text in (b"a", b"b"))
    assert one.digest != other.digest and one.rows == other.rows == 1


@given(IDS, st.integers(0, 30), st.text(max_size=3))
def test_a_subset_keeps_what_remains_of_it(ids, k, salt):
    chosen = bottom_k(ids, k, salt)
    assert len(chosen) == min(k, len(ids)) and chosen == sorted(chosen)
    assert bottom_k(ids[::-1], k, salt) == chosen
    if chosen:
        rest = [i for i in ids if i != chosen[0]]
        assert set(chosen[1:]) <= set(bottom_k(rest, k, salt))


class Stored:
    """A run whose only artefact is one Parquet file, read as `storage` reads it."""

    def __init__(self, folder: Path, ids: list[str]) -> None:
        import pyarrow.parquet as pq

        self.store, self.uri, self.file = self, str(folder), folder / "samples.parquet"
        pq.write_table(pa.table({"sample_id": sorted(ids), "row": range(len(ids))}), self.file)

    def open(self, _: Any) -> Stored:
        return self

    def arrow(self, _: str, columns: Any = None, filters: Any = None) -> pa.Table:
        import pyarrow.parquet as pq

        return pq.read_table(self.file, columns=columns, filters=filters)


def test_shards_and_subsets_are_read_from_a_stored_table(tmp_path):
    ids = [hashlib.sha256(bytes([n])).hexdigest() for n in range(60)]
    run = Stored(tmp_path, ids)
    for shard in shard_tree(ids, 8, 6):
        assert read_shard(run, run, shard)["sample_id"].to_pylist() == members(ids, shard)
    subset = subset_of(ids, 7, "salt")
    assert read_subset(run, run, subset)["sample_id"].to_pylist() == bottom_k(ids, 7, "salt")


def test_a_shard_of_another_dataset_is_noticed(tmp_path):
    run = Stored(tmp_path, ["0" * 64])
    with pytest.raises(StorageFault, match=r"shard root has 2 rows, .* holds 1; delete that artefact"):
        read_shard(run, run, Shard(prefix="", digest="", rows=2))
