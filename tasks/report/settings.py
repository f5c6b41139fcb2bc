"""How much the report shows."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ReportSettings(BaseModel):
    """How much of each list the report shows; the artefacts keep everything."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="Report")

    version: Literal[1] = 1
    top_features: int = Field(default=12, ge=1, le=50, title="Features per direction")
    top_rows: int = Field(default=12, ge=1, le=100, title="Rows per end of a ranking")
    text_limit: int = Field(default=1500, ge=100, le=20_000, title="Characters shown of a row's text")
