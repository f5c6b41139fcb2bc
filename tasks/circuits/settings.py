"""For how many prompts, and how closely, it is traced which parts of the model carry a predicted change."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from foretune.tasks.engine.keys import without_result


class TraceSettings(BaseModel):
    """How the change on one prompt is traced."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="Trace")

    version: Literal[1] = 1
    points: int = Field(
        default=8,
        ge=1,
        le=128,
        title="Points of the integral",
        description="a forward and a backward pass each, for nodes and for weights; 1: attribution patching",
    )
    largest: int = Field(
        default=20, ge=1, le=200, title="Parts put in place", description="largest first, a forward pass each"
    )
    recovered: float = Field(
        default=0.7, gt=0, le=1, title="Share to recover", description="of the change, by as few parts as can"
    )
    draws: int = Field(
        default=8, ge=0, le=64, title="Random sets", description="of as many parts, to compare with; 0: none"
    )
    seed: int = Field(default=0, ge=0, le=2**31 - 1, title="Seed of the random sets")
    batch_tokens: int = Field(
        default=2048, ge=1, le=10**8, title="Tokens per batch", json_schema_extra=without_result()
    )

    @property
    def forwards(self) -> int:
        """Most forward passes over a prompt."""
        return 5 + self.backwards + 3 * self.largest + 2 * self.draws

    @property
    def backwards(self) -> int:
        """Backward passes: through nodes, through the stream's end, and to the weights."""
        return 2 * self.points + max(self.points, 2)


class CircuitSettings(TraceSettings):
    """Which layers, heads and MLPs carry the change, for the prompts whose answers changed most."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="Circuits")

    prompts: int = Field(
        default=0,
        ge=0,
        le=20,
        title="Prompts traced",
        description="those whose answers changed most; each costs about 150 passes over it; 0: none",
    )

    @property
    def trace(self) -> TraceSettings:
        """The part that one prompt takes."""
        return TraceSettings(**self.model_dump(include=set(TraceSettings.model_fields)))
