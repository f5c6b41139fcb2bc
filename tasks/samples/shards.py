"""Shards of a dataset: the leaves of a prefix tree on sample ids, and subsets chosen by a hash of the id.

Both depend on the set of ids alone, never on the order of the rows, and move little when the set does: a
removed row touches one leaf, which may then merge with its sibling.
"""

from __future__ import annotations

import hashlib
import heapq
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from foretune.storage.digests import sha256_hex
from foretune.storage.errors import StorageFault

if TYPE_CHECKING:
    import pyarrow as pa

_ID_BITS = 256


class ShardSettings(BaseModel):
    """How finely the rows are cut; the number of shards is bounded, whatever the number of rows."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="Shards")

    version: Literal[1] = 1
    max_rows: int = Field(
        default=16, ge=1, le=1_000_000, title="Rows per shard", description="a larger one is cut in two"
    )
    max_depth: int = Field(default=10, ge=0, le=16, title="Depth of the tree", description="at most 2^max_depth shards")
    node_depth: int = Field(
        default=6,
        ge=0,
        le=10,
        title="Depth of the gradient field",
        description="at most 2^node_depth gradients are stored, whatever the number of rows",
    )


class Shard(BaseModel, frozen=True):
    """One leaf: every sample whose id begins with these bits."""

    prefix: str  # of 0s and 1s; "" is the whole dataset
    digest: str  # sha256 over the sorted sample ids
    rows: int

    def bounds(self) -> tuple[str, str | None]:
        """(first id, first id beyond or None), as 64 hex digits."""
        low = int(self.prefix or "0", 2) << (_ID_BITS - len(self.prefix))
        high = low + (1 << (_ID_BITS - len(self.prefix)))
        return f"{low:064x}", f"{high:064x}" if high >> _ID_BITS == 0 else None


def shard_tree(sample_ids: Iterable[str], max_rows: int, max_depth: int) -> list[Shard]:
    """The leaves, in the order of their prefixes; together they hold every id once, and none is empty.

    A node with more than `max_rows` ids is cut in two unless it lies at `max_depth`.
    """
    return list(_leaves(sorted(sample_ids), "", max_rows, max_depth))


def _leaves(ids: list[str], prefix: str, max_rows: int, max_depth: int) -> Iterator[Shard]:
    if not ids:
        return
    if len(ids) <= max_rows or len(prefix) == max_depth:
        yield Shard(prefix=prefix, digest=sha256_hex("\n".join(ids).encode()), rows=len(ids))
        return
    middle = f"{(int(prefix or '0', 2) * 2 + 1) << (_ID_BITS - len(prefix) - 1):064x}"
    cut = bisect_left(ids, middle)
    yield from _leaves(ids[:cut], prefix + "0", max_rows, max_depth)
    yield from _leaves(ids[cut:], prefix + "1", max_rows, max_depth)


def rows_of_shard(sorted_ids: Sequence[str], shard: Shard) -> range:
    """Positions of a shard's rows in a table sorted by sample_id."""
    first, beyond = shard.bounds()
    return range(bisect_left(sorted_ids, first), len(sorted_ids) if beyond is None else bisect_left(sorted_ids, beyond))


def read_shard(run: Any, samples: Any, shard: Shard) -> pa.Table:
    """A shard's rows of the `samples` artefact, sorted by sample_id."""
    first, beyond = shard.bounds()
    filters = [("sample_id", ">=", first)] + ([("sample_id", "<", beyond)] if beyond else [])
    table = run.store.open(samples).arrow("samples.parquet", filters=filters)
    if len(table) != shard.rows:
        raise StorageFault(
            f"shard {shard.prefix or 'root'} has {shard.rows} rows, {samples.uri} holds {len(table)}; "
            "delete that artefact and run again"
        )
    return table


class Subset(BaseModel, frozen=True):
    """A few samples, those with the smallest hashes: a cleaned dataset mostly keeps them."""

    digest: str  # sha256 over the sorted sample ids
    ids: tuple[str, ...]  # sorted

    @property
    def rows(self) -> int:
        return len(self.ids)


def subset_of(sample_ids: Iterable[str], k: int, salt: str) -> Subset:
    """The subset of at most `k` samples."""
    chosen = bottom_k(sample_ids, k, salt)
    return Subset(digest=sha256_hex("\n".join(chosen).encode()), ids=tuple(chosen))


def read_subset(run: Any, samples: Any, subset: Subset) -> pa.Table:
    """A subset's rows of the `samples` artefact, sorted by sample_id."""
    import pyarrow.compute as pc

    table = run.store.open(samples).arrow("samples.parquet")
    return table.filter(pc.is_in(table["sample_id"], value_set=_strings(subset.ids)))  # pyright: ignore[reportAttributeAccessIssue]


def _strings(values: Iterable[str]) -> pa.Array:
    import pyarrow as pa

    return pa.array(sorted(values), pa.string())


def bottom_k(sample_ids: Iterable[str], k: int, salt: str) -> list[str]:
    """The `k` ids with the smallest salted hashes, sorted by id; all of them when there are fewer."""
    return sorted(heapq.nsmallest(k, sample_ids, key=lambda sample_id: salted_hash(sample_id, salt)))


def salted_hash(sample_id: str, salt: str) -> int:
    """A 64-bit hash of an id, uniform over ids and independent between salts."""
    return int.from_bytes(hashlib.sha256(f"{salt}:{sample_id}".encode()).digest()[:8], "big")
