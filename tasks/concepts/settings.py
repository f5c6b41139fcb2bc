"""How features are scored, held against noise, named and grouped."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from foretune.tasks.engine.keys import without_result
from foretune.tasks.inputs.concepts import FamilySettings, FeatureNullSettings, NamingSettings


class FeatureSettings(BaseModel):
    """How features are scored."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="Features")

    version: Literal[1] = 1
    top: int = Field(
        default=20,
        ge=1,
        le=100_000,
        title="Features listed",
        description="in result.json, per direction",
        json_schema_extra=without_result(),
    )
    step: float = Field(default=0.02, gt=0, le=1, title="Difference step", description="share of the predicted delta")
    batch_tokens: int = Field(
        default=2048, ge=1, le=10**8, title="Tokens per micro-batch", json_schema_extra=without_result()
    )


class ConceptSettings(FeatureSettings):
    """How features are scored, held against noise, named and grouped."""

    nulls: FeatureNullSettings = FeatureNullSettings()
    naming: NamingSettings = NamingSettings()
    families: FamilySettings = FamilySettings()

    @property
    def scored(self) -> FeatureSettings:
        """The part that the scores are made with: nothing else re-runs them."""
        return FeatureSettings(**self.model_dump(include=set(FeatureSettings.model_fields)))
