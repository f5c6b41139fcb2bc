"""The rows a pass works on, as an input: what stands for them in keys is their content, not the file they are in.

Dropping three samples changes the dataset's `samples` artefact, but not the rows of the shards that keep theirs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.keys import without_result
from foretune.tasks.samples.shards import Shard, Subset, read_shard, read_subset

if TYPE_CHECKING:
    import pyarrow as pa


class ShardRows(BaseModel, frozen=True):
    """One shard of a role's samples."""

    samples: ArtifactRef
    shard: Shard
    encoding: str  # digest of the tokenizer and of the rules that made tokens and labels
    tokens: int = 0  # of all rows together

    def identity(self) -> dict[str, Any]:
        return {"ids": self.shard.digest, "encoding": self.encoding}

    @property
    def work(self) -> tuple[int, int]:
        """Rows and tokens."""
        return self.shard.rows, self.tokens

    def read(self, run: Run) -> pa.Table:
        """The rows, sorted by sample_id."""
        return read_shard(run, self.samples, self.shard)


class SubsetRows(BaseModel, frozen=True):
    """A few of a role's samples, chosen by id."""

    samples: ArtifactRef
    subset: Subset
    encoding: str
    tokens: int = 0

    def identity(self) -> dict[str, Any]:
        return {"ids": self.subset.digest, "encoding": self.encoding}

    @property
    def work(self) -> tuple[int, int]:
        """Rows and tokens."""
        return self.subset.rows, self.tokens

    def read(self, run: Run) -> pa.Table:
        """The rows, sorted by sample_id."""
        return read_subset(run, self.samples, self.subset)


class ReadSettings(BaseModel, frozen=True):
    """How a pass that only goes forward takes its rows."""

    batch_tokens: int = Field(json_schema_extra=without_result())
