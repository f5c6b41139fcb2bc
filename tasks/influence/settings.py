"""The request's `influence` part: the score that ranks, and the settings of each step behind it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from foretune.tasks.influence.derivatives import ScoringSettings
from foretune.tasks.influence.replays import ReplaySettings
from foretune.tasks.influence.solve import SolverSettings
from foretune.tasks.influence.targets import TargetSettings


class InfluenceSettings(BaseModel):
    """Which score ranks the samples, on what, and how they are read."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="Influence")

    version: Literal[1] = 1
    method: Literal["auto", "replayed", "preconditioned", "lissa"] = Field(
        default="auto",
        title="Ranking score",
        description="auto: replayed where rows were kept one by one (LoRA, AdamW, at most landscape.row_gradients "
        "rows), else preconditioned",
    )
    target: TargetSettings = Field(default=TargetSettings(), title="Target")
    watch: list[str] | None = Field(
        default=None,
        max_length=100,
        title="Watched suites",
        description="each row is scored by what it does to these too; none: the critical ones (refusal), where rows "
        "were kept one by one; []: no suite",
    )
    suite_items: int = Field(
        default=16, ge=1, le=1_000_000, title="Items of a watched suite", description="at most, its first ones"
    )
    solver: SolverSettings = Field(default=SolverSettings(), title="LiSSA solver")
    replays: ReplaySettings = Field(default=ReplaySettings(), title="Replays")
    neutral: float = Field(
        default=0.1, ge=0, le=1e6, title="Neutral below", description="share of the scores' standard deviation"
    )
    outlier: float = Field(
        default=3.0, gt=0, le=1e6, title="Outlier beyond", description="standard deviations from the mean score"
    )
    tokens_of: int | None = Field(
        default=None,
        ge=0,
        le=10**12,
        title="Tokens of row",
        description="number of a training row whose tokens are scored one by one",
    )
    scoring: ScoringSettings = Field(default=ScoringSettings(), title="Pass over all samples")

    @property
    def solves(self) -> bool:
        """Whether the inverse-curvature solve is asked for, which costs more than any other pass."""
        return self.method == "lissa" or self.solver.when == "always"
