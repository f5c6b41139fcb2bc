"""The held-out rows: a file of their own, or a hashed split of the dataset."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from foretune.storage.errors import BadInput
from foretune.tasks.samples.ids import IdentifiedRow
from foretune.tasks.samples.shards import salted_hash


class HeldoutSettings(BaseModel):
    """Rows that are never trained on, where losses are predicted: a file of their own, or a hashed split."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="Held-out rows")

    version: Literal[1] = 1
    path: str | None = Field(
        default=None, title="File", description="local or s3://", json_schema_extra={"affects_result": False}
    )
    fraction: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        title="Fraction",
        description="share of the dataset's rows; 0.1 when there is no file",
    )
    seed: int = Field(default=0, ge=0, le=2**63 - 1, title="Seed", description="another seed, another split")

    @model_validator(mode="after")
    def _one_source(self) -> HeldoutSettings:
        if self.path is not None and self.fraction is not None:
            raise ValueError("give heldout.path or heldout.fraction, not both")
        if self.path is None and self.fraction is None:
            self.fraction = 0.1
        return self


def split(
    rows: list[IdentifiedRow], heldout: HeldoutSettings, side: Literal["train", "heldout"]
) -> list[IdentifiedRow]:
    """One side of the split; all rows when the held-out ones have a file of their own.

    A row is held out when the hash of its content falls under the fraction: no other row's coming or going
    moves it, and equal rows stay together. A split that would hold out nothing takes the smallest hash.
    """
    if heldout.fraction is None:
        return list(rows)
    hashes = {row.content_id: salted_hash(row.content_id, f"heldout-{heldout.seed}") for row in rows}
    if len(hashes) < 2:
        raise BadInput(f"{len(rows)} equal rows cannot be split; give a held-out file (dataset.heldout.path)")
    limit = max(heldout.fraction * 2.0**64, min(hashes.values()) + 1)
    kept = [row for row in rows if (hashes[row.content_id] < limit) == (side == "heldout")]
    if not kept:
        raise BadInput(f"dataset.heldout.fraction {heldout.fraction} leaves no row to train on; lower it")
    return kept
