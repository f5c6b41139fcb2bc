"""Which rules look at the rows of a dataset, and from where on they become signals."""

from __future__ import annotations

import difflib
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationInfo, field_validator

from foretune.tasks.quality.rules import (
    ASSISTANT_SPEAK,
    HARMFUL,
    PARTS,
    RULES,
    Keyword,
    Part,
    Rule,
    Severity,
    StockPhrase,
    builtin_rules,
)


class OwnRule(BaseModel):
    """A rule of the user's: phrases, and patterns in RE2's syntax."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[a-z][a-z0-9_]{1,60}$", description="stable name; small letters, digits, underscores")
    severity: Severity = "warn"
    category: str = Field(default="own", min_length=1, max_length=60)
    language: str = Field(default="any", max_length=20)
    says: str = Field(default="a rule of your own", min_length=1, max_length=300, description="what it looks for")
    parts: list[Part] = Field(default=list(PARTS), min_length=1, max_length=len(PARTS), description="where it looks")
    phrases: list[str] = Field(default=[], max_length=100_000, description="whole words; * leaves the end open")
    patterns: list[str] = Field(default=[], max_length=1000, description="regular expressions as RE2 reads them")

    @field_validator("id")
    @classmethod
    def _new(cls, name: str) -> str:
        if name in RULES:
            raise ValueError(f"{name} comes with foretune; give the rule another id")
        return name

    @field_validator("phrases")
    @classmethod
    def _worded(cls, phrases: list[str]) -> list[str]:
        if empty := [phrase for phrase in phrases if not any(sign.isalnum() for sign in phrase)]:
            raise ValueError(f"the phrase {empty[0]!r} holds no word; write one")
        return phrases

    def rule(self) -> Rule:
        """As the rules that come with foretune are."""
        return Rule(
            id=self.id, category=self.category, severity=self.severity, language=self.language, says=self.says,
            parts=tuple(self.parts), phrases=tuple(self.phrases),
            patterns={f"pattern {number}": pattern for number, pattern in enumerate(self.patterns, start=1)},
        )  # fmt: skip


class Suppressed(BaseModel):
    """Findings of one row that a person has looked at."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    row: str = Field(pattern=r"^[0-9a-f]{12,64}$", description="the beginning of the row's sample_id")
    rules: list[str] = Field(default=[], max_length=10_000, description="ids; none: every rule")
    reason: str = Field(default="", max_length=1000)


class QualitySettings(BaseModel):
    """Which rules look at the rows, and from where on a share of rows becomes a signal."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="Dataset quality")

    _by_beginning: dict[str, list[Suppressed]] | None = PrivateAttr(default=None)

    version: Literal[1] = 1
    builtin_rules: bool = Field(
        default=True, title="Built-in lists", description="use the lists that come with foretune"
    )
    rules: str | None = Field(
        default=None,
        title="File of rules",
        description="YAML with own, disabled and suppressed; read when the request is",
        json_schema_extra={"affects_result": False},
    )
    own: list[OwnRule] = Field(default=[], max_length=10_000, title="Own rules", description="beside those built in")
    disabled: list[str] = Field(default=[], max_length=10_000, title="Rules that are off", description="ids")
    suppressed: list[Suppressed] = Field(
        default=[], max_length=1_000_000, title="Suppressed findings", description="of rows that were looked at"
    )
    benchmarks: list[str] = Field(
        default=[],
        max_length=1000,
        title="Benchmarks",
        description="files that no row should come from; looked for by `foretune quality` and by every run",
        json_schema_extra={"affects_result": False},
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

    @field_validator("disabled")
    @classmethod
    def _known(cls, names: list[str], info: ValidationInfo) -> list[str]:
        own = [rule.id for rule in info.data.get("own") or []]
        if unknown := [name for name in names if name not in RULES and name not in own]:
            nearest = difflib.get_close_matches(unknown[0], [*RULES, *own], n=1, cutoff=0.0)
            raise ValueError(f"no rule {unknown[0]!r}; the nearest is {nearest[0]}")
        return names

    def active(self) -> dict[str, Rule]:
        """The rules that look at rows, by id: those built in, then the user's own, without those that are off."""
        every = dict(builtin_rules()) | {own.id: own.rule() for own in self.own}
        return {name: rule for name, rule in every.items() if name not in self.disabled}

    def text_rules(self) -> tuple[list[Rule], list[Rule]]:
        """Those of one text, built in and own."""
        own = {rule.id for rule in self.own}
        active = self.active().values()
        built = [rule for rule in active if rule.id not in own] if self.builtin_rules else []
        return built, [rule for rule in active if rule.id in own]

    def notes(self) -> frozenset[str]:
        """Rules whose flag does not call a row faulty."""
        return frozenset(name for name, rule in self.active().items() if rule.severity == "info")

    def kept(self, flags: list[str], sample_id: str) -> list[str]:
        """The flags of a row but those of rules that are off, and those that are suppressed for it."""
        if not self.disabled and not self.suppressed:
            return flags
        hidden = set(self.disabled)
        for each in self._suppressed_by_beginning().get(sample_id[:12], ()):
            if sample_id.startswith(each.row):
                hidden |= set(each.rules or flags)
        return [flag for flag in flags if flag not in hidden] if hidden else flags

    def _suppressed_by_beginning(self) -> dict[str, list[Suppressed]]:
        if self._by_beginning is None:
            self._by_beginning = {}
            for each in self.suppressed:
                self._by_beginning.setdefault(each.row[:12], []).append(each)
        return self._by_beginning

    def keywords(self) -> tuple[Keyword, ...]:
        return (*(HARMFUL if self.builtin_rules else ()), *self.harmful_keywords)

    def stock_phrases(self) -> tuple[StockPhrase, ...]:
        return (*(ASSISTANT_SPEAK if self.builtin_rules else ()), *self.assistant_phrases)
