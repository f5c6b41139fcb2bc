"""For how many concepts, rows, suites and answers it is tried whether they carry the change."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from foretune.tasks.engine.keys import without_result
from foretune.tasks.inputs.concepts import ConceptBehaviourSettings


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


class ConceptEffectSettings(ConceptCauseSettings):
    """Which of the concepts that moved most carry the change of the held-out loss, of suites and of answers."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="Causes among concepts")

    suites: int = Field(
        default=1,
        ge=0,
        le=100,
        title="Suites",
        description="those that changed most, beyond chance and scored by likelihoods; 0: none",
    )
    items: int = Field(default=8, ge=1, le=1_000_000, title="Items per suite", description="at most")
    answers: int = Field(
        default=8, ge=0, le=1000, title="Answers", description="of the predicted model, teacher-forced; 0: none"
    )

    @property
    def loss(self) -> ConceptCauseSettings:
        """The part that the loss is tried with."""
        return ConceptCauseSettings(**self.model_dump(include=set(ConceptCauseSettings.model_fields)))

    @property
    def behaviour(self) -> ConceptBehaviourSettings:
        """The part that suites and answers are tried with."""
        return ConceptBehaviourSettings(**self.model_dump(include=set(ConceptBehaviourSettings.model_fields)))
