"""For how many concepts, and on how many rows, it is tried whether they carry the change of the loss."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from foretune.tasks.engine.keys import without_result


class ConceptCauseSettings(BaseModel):
    """Which of the concepts that moved most carry the change of the held-out loss, by taking each back."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="Causes among concepts")

    version: Literal[1] = 1
    features: int = Field(
        default=10,
        ge=0,
        le=1000,
        title="Concepts tried",
        description="those that moved most, beyond noise; each costs 1 + controls passes over the rows; 0: none",
    )
    rows: int = Field(default=16, ge=2, le=100_000, title="Held-out rows", description="chosen by id")
    controls: int = Field(
        default=1,
        ge=0,
        le=20,
        title="Controls",
        description="per concept, random features' directions, moved as far; a concept must do more than any of all",
    )
    to: Literal["base", "zero"] = Field(
        default="base",
        title="Taken back to",
        description="what it is in the base on the same token, or nothing",
    )
    bootstrap: int = Field(default=2000, ge=1, le=100_000, title="Bootstrap draws", description="of rows")
    seed: int = Field(default=0, ge=0, le=2**31 - 1, title="Seed of the controls")
    batch_tokens: int = Field(
        default=2048, ge=1, le=10**8, title="Tokens per micro-batch", json_schema_extra=without_result()
    )

    @property
    def forwards(self) -> int:
        """Most forward passes over the rows."""
        return 2 + self.features * (1 + self.controls)
