"""How long the rows of a table are, and so how many tokens a pass over them reads, padding included."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from foretune.tasks.samples.rows import ShardRows, SubsetRows
from foretune.tasks.samples.shards import rows_of_shard

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Lengths:
    """Tokens of every row, after truncation; rows sorted by sample_id."""

    ids: Sequence[str]
    answers: Sequence[int]  # of the row, of a pair with its chosen answer
    rejected: Sequence[int]  # of a pair with its rejected answer; 0 for a row that is no pair
    alone: Sequence[int]  # of the row's first token and all from its first label on
    trained: Sequence[bool]  # whether the row has a label

    @property
    def paired(self) -> bool:
        return any(self.rejected)

    @property
    def epoch(self) -> int:
        """Tokens that one epoch of the real run reads."""
        rows = zip(self.answers, self.rejected, self.trained, strict=True)
        return sum(own + other for own, other, trained in rows if trained or other)

    def of(self, rows: ShardRows | SubsetRows) -> Lengths:
        """Those of a shard or a subset of this table's rows."""
        if isinstance(rows, ShardRows):
            return self._at(rows_of_shard(self.ids, rows.shard))
        places = {sample_id: place for place, sample_id in enumerate(self.ids)}
        return self._at(sorted(places[sample_id] for sample_id in rows.subset.ids))

    def first(self, rows: int) -> Lengths:
        return self._at(range(min(rows, len(self.ids))))

    def only_answers(self) -> Lengths:
        """The rows without their prompts."""
        return Lengths(self.ids, self.alone, [0] * len(self.ids), self.alone, self.trained)

    def batches(self, max_tokens: int, trained_only: bool = True) -> list[tuple[int, int]]:
        """Of every micro-batch as `minibatches` makes them its padded tokens, and those of its rejected answers."""
        from foretune.tasks.numerics.buckets import buckets

        kept = [row for row, trained in enumerate(self.trained) if trained or not trained_only]
        lengths = [self.answers[row] + self.rejected[row] for row in kept]
        groups = [[kept[n] for n in group] for group in buckets(lengths, max([max_tokens, *lengths]))]
        return [
            (len(group) * max(self.answers[n] for n in group), len(group) * max(self.rejected[n] for n in group))
            for group in groups
        ]

    def _at(self, places: Iterable[int]) -> Lengths:
        columns = (self.ids, self.answers, self.rejected, self.alone, self.trained)
        kept = list(places)
        return Lengths(*([column[place] for place in kept] for column in columns))  # pyright: ignore[reportArgumentType]


def read_lengths(run: Any, samples: Any) -> Lengths:
    """Of a stored `samples` artefact."""
    columns = ["sample_id", "loss_mask", "rejected_ids"]
    return lengths_of(run.store.open(samples).arrow("samples.parquet", columns=columns))


def lengths_of(table: pa.Table) -> Lengths:
    """Of a `samples` table."""
    import pyarrow.compute

    pc: Any = pyarrow.compute  # makes its functions when it is imported: not seen by a type checker
    answers = pc.list_value_length(table["loss_mask"]).to_pylist()
    alone = [1] * len(answers)
    starts = _first_labels(table["loss_mask"].combine_chunks())
    for row, start in starts.items():
        alone[row] = 1 + answers[row] - start
    rejected = [tokens or 0 for tokens in pc.list_value_length(table["rejected_ids"]).to_pylist()]
    trained = [row in starts for row in range(len(answers))]
    return Lengths(table["sample_id"].to_pylist(), answers, rejected, alone, trained)


def _first_labels(masks: Any) -> dict[int, int]:
    """{row: place of its first label}; nothing precedes a row's first token, so that it is none."""
    import pyarrow.compute

    pc: Any = pyarrow.compute
    tails = pc.list_slice(masks, 1)
    labels = pc.indices_nonzero(pc.list_flatten(tails))
    rows = pc.run_end_encode(pc.list_parent_indices(tails).take(labels), run_end_type="int64")  # rises: one run a row
    if not len(labels):
        return {}
    # No array is made of Python's numbers: that imports pandas.
    firsts = [labels[0].as_py(), *labels.take(rows.run_ends.slice(0, len(rows.run_ends) - 1)).to_pylist()]
    before = [0, *accumulate(pc.list_value_length(tails).to_pylist())]
    return {row: 1 + place - before[row] for row, place in zip(rows.values.to_pylist(), firsts, strict=True)}
