"""On what, and how strictly, the base model and the predicted checkpoint are compared."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from foretune.tasks.engine.keys import without_result

FEWEST_NULLS = 4
"""Below, the spread of the draws is as uncertain as it is large."""


FEWEST_ROWS = 8
"""Held-out rows of the null deltas, where as many are compared."""


class DiffSettings(BaseModel):
    """On how much text two models are compared: what the SAE diff takes too."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="Model comparison")

    version: Literal[1] = 1
    rows: int = Field(default=64, ge=1, le=1_000_000, title="Held-out rows compared", description="chosen by id")
    ece_bins: int = Field(default=15, ge=2, le=10_000, title="Bins of the calibration error")
    regression: float = Field(
        default=0.10,
        gt=0,
        le=1e6,
        title="Regression",
        description="a probe regresses when its perplexity rises by this share",
    )
    batch_tokens: int = Field(
        default=2048, ge=1, le=10**8, title="Tokens per micro-batch", json_schema_extra=without_result()
    )


class NullSettings(BaseModel):
    """Random deltas of the prediction's norm and rank, to tell what a change of that size does by itself."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="Null deltas")

    version: Literal[1] = 1
    deltas: int = Field(
        default=6, ge=0, le=64, title="Null deltas", description="each costs a forward pass over their rows; 0: none"
    )
    share: float = Field(
        default=0.5,
        gt=0,
        le=1,
        title="Share of the compared rows",
        description="that the null deltas are taken on, at least 8 rows: noise is no larger on more rows",
        json_schema_extra=without_result(),  # the rows are an input by themselves
    )
    seed: int = Field(default=0, ge=0, le=2**31 - 1, title="Seed of the null deltas")

    def rows_of(self, compared: int) -> int:
        """How many of the compared rows they are taken on."""
        return min(compared, max(FEWEST_ROWS, math.ceil(self.share * compared)))

    @field_validator("deltas")
    @classmethod
    def _enough_for_a_spread(cls, value: int) -> int:
        if 0 < value < FEWEST_NULLS:
            raise ValueError(f"{value} have no spread to speak of; give at least {FEWEST_NULLS}, or 0 for none")
        return value


class ModelDiffSettings(DiffSettings):
    """On what, and how strictly, the base model and the predicted checkpoint are compared."""

    bootstrap: int = Field(
        default=2000, ge=0, le=100_000, title="Bootstrap draws", description="of rows, for intervals; 0: none"
    )
    worst_tokens: int = Field(
        default=50, ge=0, le=1000, title="Worst tokens", description="per set: those of largest divergence, in context"
    )
    directions: int = Field(
        default=64,
        ge=0,
        le=10_000,
        title="Modules read as tokens",
        description="those of largest change, by their first directions; 0: none",
    )
    nulls: NullSettings = NullSettings()

    @property
    def compared(self) -> DiffSettings:
        """The part that the SAE diff takes: nothing else re-runs it."""
        return DiffSettings(**self.model_dump(include=set(DiffSettings.model_fields)))
