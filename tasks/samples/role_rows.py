"""The rows of one role, train or held-out, cut as the passes take them: shards, and subsets chosen by id."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from foretune.storage.refs import ArtifactRef
from foretune.tasks.samples.rows import ShardRows, SubsetRows
from foretune.tasks.samples.shards import Shard, ShardSettings, Subset, rows_of_shard, shard_tree, subset_of
from foretune.tasks.samples.table import SampleIndex

BLOCK_ROWS = 64
"""Of a gradient block at most, where not all rows are measured, as far as the tree is deep."""


@dataclass(frozen=True)
class RoleRows:
    """A `samples` artefact with its index, as inputs of passes."""

    samples: ArtifactRef
    index: SampleIndex
    encoding: str  # digest of the tokenizer and of the rules that made tokens and labels
    cut: ShardSettings
    wanted: int | None = None  # rows to measure, in whole gradient blocks; None: all

    @cached_property
    def all_leaves(self) -> list[ShardRows]:
        """What the passes over every row map over, measured or not."""
        return self._shards(self.cut.max_depth)

    @cached_property
    def leaves(self) -> list[ShardRows]:
        """What the passes over every measured row map over."""
        if not self.others:
            return self.all_leaves
        measured = tuple(node.shard.prefix for node in self.nodes)
        return [leaf for leaf in self.all_leaves if leaf.shard.prefix.startswith(measured)]

    def first_leaves(self, rows: int | None) -> list[ShardRows]:
        """The first of them, until they hold so many rows; all without a number."""
        if rows is None:
            return self.leaves
        ends = list(accumulate(leaf.shard.rows for leaf in self.leaves))
        return self.leaves[: bisect_left(ends, rows) + 1]

    @cached_property
    def nodes(self) -> list[ShardRows]:
        """What the gradient field is stored for: the leaves of a tree of bounded depth, or the first of them. More
        rows to measure keep those that fewer have; an id is a digest, so that the first rows are drawn at random."""
        return self._blocks[: self._measured_blocks]

    @cached_property
    def others(self) -> list[ShardRows]:
        """The blocks whose gradients are not measured."""
        return self._blocks[self._measured_blocks :]

    def first_others(self, rows: int) -> list[ShardRows]:
        """The first of them that together hold no more rows than that, but for the last one's."""
        before = accumulate((block.shard.rows for block in self.others), initial=0)
        return [block for block, ahead in zip(self.others, before, strict=False) if ahead < rows]

    @cached_property
    def trained_ids(self) -> list[str]:
        """Ids of the measured samples that have a loss: what every subset is chosen from."""
        return self._measured(self.index.trained_ids)

    @cached_property
    def measured_rows(self) -> int:
        return sum(node.shard.rows for node in self.nodes)

    @cached_property
    def _blocks(self) -> list[ShardRows]:
        depth = self.cut.node_depth
        if self.wanted is not None:  # many rows in few blocks would make a few rows of them a poor draw
            depth = max(depth, math.ceil(math.log2(max(len(self.index.ids), 1) / BLOCK_ROWS)))
        return self._shards(min(depth, self.cut.max_depth))

    @cached_property
    def _measured_blocks(self) -> int:
        if self.wanted is None:
            return len(self._blocks)
        ends = list(accumulate(block.shard.rows for block in self._blocks))
        return min(bisect_left(ends, self.wanted) + 1, len(ends))

    def _measured(self, ids: Sequence[str]) -> list[str]:
        """Those of the sorted `ids` that lie in measured blocks, which are the first ones by id."""
        if not self.others:
            return list(ids)
        beyond, _ = self.others[0].shard.bounds()
        return list(ids[: bisect_left(ids, beyond)])

    def whole(self) -> ShardRows:
        """All rows as one shard."""
        return self._shard(*shard_tree(self.index.ids, len(self.index.ids), 0))

    def subset(self, rows: int, salt: str) -> SubsetRows:
        """At most `rows` rows with a label."""
        return self._chosen(subset_of(self.trained_ids, rows, salt))

    def of_all(self, rows: int, salt: str) -> SubsetRows:
        """The same of all rows, measured or not."""
        return self._chosen(subset_of(self.index.trained_ids, rows, salt))

    def short_subset(self, rows: int, salt: str, max_tokens: int) -> SubsetRows:
        """At most `rows` rows with a label, none above `max_tokens` tokens where there are such."""
        short = self._measured(self.index.short_ids(max_tokens)) or self.trained_ids
        return self._chosen(subset_of(short, rows, salt))

    def one(self, row: int) -> SubsetRows:
        """The row at this position of its file. BadInput where there is none, or none with a label."""
        return self._chosen(self.index.one(row))

    def _chosen(self, subset: Subset) -> SubsetRows:
        tokens = self.index.tokens_of(subset.ids)
        return SubsetRows(samples=self.samples, subset=subset, encoding=self.encoding, tokens=tokens)

    def _shards(self, depth: int) -> list[ShardRows]:
        return [self._shard(leaf) for leaf in shard_tree(self.index.ids, self.cut.max_rows, depth)]

    def _shard(self, shard: Shard) -> ShardRows:
        ids = self.index.ids
        tokens = self.index.tokens_of(ids[row] for row in rows_of_shard(ids, shard))
        return ShardRows(samples=self.samples, shard=shard, encoding=self.encoding, tokens=tokens)
