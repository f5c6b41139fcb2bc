"""How much of the real run's work a simulation may take: the request's `effort` part."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Preset = Literal["quick", "standard", "thorough", "exhaustive"]

SHARES: dict[Preset, float | None] = {"quick": 0.15, "standard": 0.33, "thorough": 0.66, "exhaustive": None}
"""Of the real run's forward-equivalents."""


class EffortSettings(BaseModel):
    """What a simulation may cost, as a share of the training that it replaces."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="Effort")

    version: Literal[1] = 1
    preset: Preset = Field(
        default="exhaustive",
        title="Preset",
        description="quick 0.15, standard 0.33, thorough 0.66 of the real run's forward passes; exhaustive: no budget, "
        "every row's gradient is measured and every other setting is as it stands, but that LoRA over more than 224 "
        "steps is measured at more of them",
    )
    budget: float | None = Field(
        default=None,
        gt=0,
        le=100,
        title="Budget",
        description="share of the real run's forward passes, a backward counted twice; goes before the preset",
    )

    autocast: Literal["auto", "always", "never"] = Field(
        default="auto",
        title="Autocast",
        description="on a budget, gradients and losses of training rows with products in bfloat16 under float32 "
        "weights, so that it pays for twice as many; auto: where this machine is faster at it",
    )

    @property
    def share(self) -> float | None:
        """Of the real run's forward-equivalents; None without a budget."""
        return self.budget if self.budget is not None else SHARES[self.preset]
