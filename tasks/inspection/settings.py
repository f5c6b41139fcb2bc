"""On what, and how strictly, the base model and the predicted checkpoint are compared."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from foretune.tasks.engine.keys import without_result


class DiffSettings(BaseModel):
    """On how much text the two models are compared."""

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
