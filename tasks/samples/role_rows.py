"""The rows of one role, train or held-out, cut as the passes take them: shards, and subsets chosen by id."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from foretune.storage.refs import ArtifactRef
from foretune.tasks.samples.rows import ShardRows, SubsetRows
from foretune.tasks.samples.shards import Shard, ShardSettings, Subset, rows_of_shard, shard_tree, subset_of
from foretune.tasks.samples.table import SampleIndex


@dataclass(frozen=True)
class RoleRows:
    """A `samples` artefact with its index, as inputs of passes."""

    samples: ArtifactRef
    index: SampleIndex
    encoding: str  # digest of the tokenizer and of the rules that made tokens and labels
    cut: ShardSettings

    @cached_property
    def leaves(self) -> list[ShardRows]:
        """What the passes over every row map over."""
        return self._shards(self.cut.max_depth)

    @cached_property
    def nodes(self) -> list[ShardRows]:
        """What the gradient field is stored for: the leaves of a tree of bounded depth."""
        return self._shards(min(self.cut.node_depth, self.cut.max_depth))

    def whole(self) -> ShardRows:
        """All rows as one shard."""
        return self._shard(*shard_tree(self.index.ids, len(self.index.ids), 0))

    def subset(self, rows: int, salt: str) -> SubsetRows:
        """At most `rows` rows with a label."""
        return self._chosen(subset_of(self.index.trained_ids, rows, salt))

    def short_subset(self, rows: int, salt: str, max_tokens: int) -> SubsetRows:
        """At most `rows` rows with a label, none above `max_tokens` tokens where there are such."""
        return self._chosen(subset_of(self.index.short_ids(max_tokens), rows, salt))

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
