"""Values of samples, found by sample id: scores, derivatives and shares come in several orders of the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SampleValues:
    """One value, or one row of values, per sample. Raises ValueError for another number of ids, or for one id twice."""

    ids: list[str]
    values: Tensor  # [n, ...], in the order of `ids`

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.values) or len(self._position) != len(self.ids):
            different = len(self._position)
            raise ValueError(f"{len(self.values)} values for {len(self.ids)} sample ids, {different} of them different")

    @classmethod
    def read(cls, run: Run, artifacts: list[ArtifactRef], file: str, name: str) -> SampleValues:
        """The tensor `name` of the same file of every artefact, joined; the ids are those of samples.json beside it."""
        import torch

        parts = [run.store.open(artifact) for artifact in artifacts]
        ids = [sample_id for part in parts for sample_id in part.json("samples.json")]
        return cls(ids, torch.cat([part.tensor_file(file).get_tensor(name) for part in parts]))

    def of(self, ids: Sequence[str]) -> Tensor:
        """[len(ids), ...] the values of these samples, in this order. KeyError for a sample without a value."""
        return self.values[[self._position[sample_id] for sample_id in ids]]

    def spread_over(self, ids: Sequence[str]) -> Tensor:
        """[len(ids), ...] in this order, 0 for a sample without a value. KeyError for a value of no sample in `ids`."""
        rows = {sample_id: row for row, sample_id in enumerate(ids)}
        spread = self.values.new_zeros(len(ids), *self.values.shape[1:])
        spread[[rows[sample_id] for sample_id in self.ids]] = self.values
        return spread

    @cached_property
    def _position(self) -> dict[str, int]:
        return {sample_id: position for position, sample_id in enumerate(self.ids)}
