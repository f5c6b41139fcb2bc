"""The rules of the quality pass, read from `rules.yaml`. They sort rows for a person to look at and never refuse any.

A phrase matches whole words in any case and typography (see `phrases`); `*` leaves the word's end open,
`^` ties the phrase to the beginning of the text.

Measured on prompts, the keywords of harmful content find what is said plainly and miss the rest (`measured`): the rule
points at rows to look at, and which rows ask for harm and answer willingly is told by `harm`. Openings of assistants
such as "Sure, here is" weigh 0.5: alone they are no fault.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from foretune.storage.packaged import packaged

Severity = Literal["info", "warn", "critical"]
SEVERITIES: tuple[Severity, ...] = ("info", "warn", "critical")
Part = Literal["prompt", "completion", "rejected"]
PARTS: tuple[Part, ...] = ("prompt", "completion", "rejected")


class Keyword(BaseModel):
    """A phrase that often comes with harmful content."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)

    phrase: str = Field(pattern=r"\w", max_length=1000, description="whole words; a final * leaves the end open")
    severity: Severity = Field(default="warn", description="info: counts only beside another keyword")


class StockPhrase(BaseModel):
    """A phrase by which chat assistants are known."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)

    phrase: str = Field(
        pattern=r"\w", max_length=1000, description="whole words; ^ ties it to the completion's beginning"
    )
    weight: float = Field(
        default=1.0, gt=0, le=1e6, description="a completion is flagged when its weights reach the threshold"
    )


def _split(text: Any) -> Any:
    return tuple(phrase.strip() for phrase in " ".join(text.split()).split(" | ")) if isinstance(text, str) else text


Phrases = Annotated[tuple[str, ...], BeforeValidator(_split)]


class Rule(BaseModel):
    """One rule: what it is for, and the phrases or patterns by which it is found; without either it is computed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[a-z][a-z0-9_]{1,60}$")
    category: str = Field(min_length=1, max_length=60)
    severity: Severity
    language: str = Field(default="any", max_length=20)
    says: str = Field(min_length=1, max_length=300)
    fixable: bool = False
    parts: tuple[Part, ...] = PARTS
    phrases: Phrases = ()
    patterns: dict[str, str] = Field(default={}, max_length=100)
    needs: tuple[str, ...] | Literal["digits"] = ()  # where none of them stands, no pattern is tried
    check: str | None = None
    keywords: dict[Severity, Phrases] = {}
    stock: dict[float, Phrases] = {}
    openings: Phrases = ()


class RuleFile(BaseModel):
    """The rules that come with foretune."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1]
    rules: tuple[Rule, ...]


@functools.cache
def builtin_rules() -> Mapping[str, Rule]:
    """Every rule by its id, in the file's order."""
    text = packaged("foretune.tasks.quality", "rules.yaml")
    read = RuleFile.model_validate(yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    return {rule.id: rule for rule in read.rules}


HARMFUL = tuple(
    Keyword(phrase=phrase, severity=severity)
    for severity, phrases in builtin_rules()["harmful_content"].keywords.items()
    for phrase in phrases
)
"""A part is flagged for a warn or critical keyword, or for two different info ones."""
REFUSALS = builtin_rules()["refusal"].openings
"""A completion with one of these answers a harmful prompt by declining; such rows are counted apart."""
ASSISTANT_SPEAK = tuple(
    StockPhrase(phrase=phrase, weight=weight)
    for weight, phrases in builtin_rules()["assistant_speak"].stock.items()
    for phrase in phrases
)
"""Stock phrases of chat assistants; weights of different phrases add up."""
RULES = {rule.id: rule.says for rule in builtin_rules().values()}
"""Every flag and what it says about a row."""
NOTES = frozenset(rule.id for rule in builtin_rules().values() if rule.severity == "info")
"""Flags that describe a row without calling it faulty."""
