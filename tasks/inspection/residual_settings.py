"""How the residual stream's change is read where no SAE names concepts."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from foretune.tasks.engine.keys import without_result
from foretune.tasks.inspection.settings import FEWEST_NULLS


class ResidualSettings(BaseModel):
    """Directions of the residual stream's own change, read as tokens: concepts of a model without an SAE."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="Change of the residual stream")

    version: Literal[1] = 1
    when: Literal["without_sae", "always", "never"] = Field(
        default="without_sae", title="When", description="it is read", json_schema_extra=without_result()
    )
    hook_name: str | None = Field(
        default=None,
        title="Hook point",
        description="TransformerLens name or module path; none: behind the middle layer",
    )
    directions: int = Field(default=6, ge=0, le=64, title="Principal directions", description="of the change")
    rows: int = Field(default=64, ge=1, le=10_000, title="Rows", description="of those compared, at most")
    row_tokens: int = Field(
        default=64, ge=1, le=4096, title="Label tokens per row", description="at most, evenly spaced"
    )
    first_tokens: int = Field(
        default=5, ge=1, le=64, title="First tokens", description="of a row, whose mean change is read; not its first"
    )
    draws: int = Field(
        default=8, ge=0, le=64, title="Null deltas", description="each costs a forward to the hook; 0: none"
    )
    seed: int = Field(default=0, ge=0, le=2**31 - 1, title="Seed of the null deltas")
    batch_tokens: int = Field(
        default=2048, ge=1, le=10**8, title="Tokens per micro-batch", json_schema_extra=without_result()
    )

    @field_validator("draws")
    @classmethod
    def _enough_for_a_spread(cls, value: int) -> int:
        if 0 < value < FEWEST_NULLS:
            raise ValueError(f"{value} have no spread to speak of; give at least {FEWEST_NULLS}, or 0 for none")
        return value

    def hook_of(self, depth: int) -> str:
        """The hook point in a model of `depth` layers."""
        return self.hook_name or f"blocks.{(depth - 1) // 2}.hook_resid_post"
