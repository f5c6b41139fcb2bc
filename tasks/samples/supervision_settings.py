"""How many rows are shown as the trainer sees them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class SupervisionSettings(BaseModel):
    """How many rows are shown token by token; findings and counts are of all of them."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="Supervision")

    version: Literal[1] = 1
    rows: int = Field(
        default=20, ge=0, le=100, title="Rows shown", description="the first of every finding, then by sample id"
    )
