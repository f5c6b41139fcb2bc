"""Which rules look at the rows of a dataset, and from where on they become signals."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from foretune.tasks.quality.rules import ASSISTANT_SPEAK, HARMFUL, Keyword, StockPhrase


class QualitySettings(BaseModel):
    """Which rules look at the rows, and from where on a share of rows becomes a signal."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="Dataset quality")

    version: Literal[1] = 1
    builtin_rules: bool = Field(
        default=True, title="Built-in lists", description="use the lists that come with foretune"
    )
    harmful_keywords: list[Keyword] = Field(
        default=[], max_length=100_000, title="More harmful keywords", description="added to the list"
    )
    assistant_phrases: list[StockPhrase] = Field(
        default=[], max_length=100_000, title="More stock phrases", description="added to the list"
    )
    assistant_speak_score: float = Field(
        default=1.0,
        gt=0,
        le=1e6,
        title="Assistant-speak",
        description="weight of stock phrases from which a completion is flagged",
    )
    assistant_speak_share: float = Field(
        default=0.02, ge=0, le=1, title="Assistant-speak signal", description="share of rows"
    )
    min_completion_words: int = Field(
        default=2, ge=1, le=1_000_000, title="Short completion", description="fewer words than this"
    )
    low_diversity_overlap: float = Field(
        default=0.5,
        ge=0,
        le=1,
        title="Low diversity signal",
        description="mean pairwise word overlap; diverse data: 0.2 to 0.4",
    )
    near_duplicate_jaccard: float = Field(
        default=0.7,
        gt=0,
        le=1,
        title="Near-duplicate",
        description="share of words in common, of all words of two rows",
    )
    duplicate_share: float = Field(default=0.02, ge=0, le=1, title="Duplicates signal", description="share of rows")

    def keywords(self) -> tuple[Keyword, ...]:
        return (*(HARMFUL if self.builtin_rules else ()), *self.harmful_keywords)

    def stock_phrases(self) -> tuple[StockPhrase, ...]:
        return (*(ASSISTANT_SPEAK if self.builtin_rules else ()), *self.assistant_phrases)
