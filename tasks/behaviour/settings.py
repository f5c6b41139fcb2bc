"""On which suites of items base and predicted model are scored, and how sure a change has to be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from foretune.tasks.behaviour.harness_settings import HarnessChoice, HarnessSettings
from foretune.tasks.behaviour.items import Direction, Scorer
from foretune.tasks.engine.keys import without_result

BUNDLED = (
    "refusal",
    "over_refusal",
    "identity",
    "sycophancy",
    "cruelty",
    "deception",
    "power_seeking",
    "arithmetic",
    "general_text",
    "instruction_format",
    "tool_calls",
)
"""The suites that are installed with the code, in the order in which they are shown."""

NAME = re.compile(r"^[a-z0-9][a-z0-9_-]{0,63}$")


class SuiteFile(BaseModel):
    """A suite of one's own: a file of items, or a table of which one column is read."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="Suite file")

    name: str = Field(title="Name", description="of the suite: small letters, digits, _ and -")
    path: str = Field(title="File", description="JSONL of items; with a scorer also CSV, JSON, Parquet")
    scorer: Scorer | None = Field(default=None, title="Scorer", description="of rows that name none")
    column: str | None = Field(
        default=None, title="Column", description="read as the prompt (of loss: the text); no other one is read then"
    )
    where: dict[str, str] | None = Field(
        default=None, title="Rows", description="only those whose columns say this, as in {label: unsafe}"
    )
    direction: Direction | None = Field(
        default=None, title="Better", description="higher or lower scores, or either: a change is told as one"
    )
    measures: str | None = Field(default=None, title="Measures", description="in a few words, for the report")

    @model_validator(mode="after")
    def _name_is_a_name(self) -> SuiteFile:
        _checked(self.name)
        if self.column is not None and self.scorer not in ("refusal", "loss"):
            raise ValueError("column needs scorer refusal or loss; give the items of other scorers as JSONL")
        return self


def _checked(name: str) -> str:
    if not NAME.match(name):
        raise ValueError(f"suite {name[:80]!r}: a name has small letters, digits, _ and -, at most 64")
    return name


class ScoringSettings(BaseModel):
    """How a model is asked."""

    version: Literal[1] = 1
    answer_tokens: int
    batch_tokens: int = Field(json_schema_extra=without_result())


class ComparisonSettings(BaseModel):
    """How two models' scores are compared."""

    version: Literal[1] = 1
    confidence: float
    resamples: int
    seed: int


class AlongPathSettings(BaseModel):
    """Where else the suites are asked: on the way, at the ends of other orders of the rows, under random deltas."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="Suites along the path")

    version: Literal[1] = 1
    points: int = Field(default=2, ge=0, le=64, title="Points on the way", description="evenly spaced steps; LoRA only")
    orders: int = Field(
        default=2, ge=0, le=64, title="Other orders", description="of the rows, whose ends are asked as well"
    )
    nulls: int = Field(
        default=2, ge=0, le=64, title="Random deltas", description="of the prediction's size: what noise alone does"
    )
    items: int = Field(
        default=8, ge=1, le=1_000_000, title="Items per suite", description="at most, of those that are scored"
    )

    @property
    def asks(self) -> bool:
        """Whether there is anything to ask at."""
        return bool(self.points or self.orders or self.nulls)


class BehaviourSettings(BaseModel):
    """What would the fine-tune break? Base and predicted model are scored on suites of items."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="Behaviour suites")

    version: Literal[1] = 1
    enabled: bool = Field(default=True, title="Enabled", description="false: no model is asked")
    suites: list[str | SuiteFile] = Field(
        default=list(BUNDLED),
        max_length=100,
        title="Suites",
        description="names of bundled ones, files of items, or a mapping of names to paths; none: no model is asked",
    )
    lm_eval: list[str | HarnessChoice] = Field(
        default=[],
        max_length=100,
        title="Tasks of lm-evaluation-harness",
        description="names or paths of YAML files, each a suite more; needs foretune[lm-eval]",
    )
    items: int = Field(
        default=40, ge=1, le=1_000_000, title="Items per suite", description="at most; chosen by what they say"
    )
    path: AlongPathSettings = AlongPathSettings()
    answer_tokens: int = Field(
        default=20, ge=1, le=512, title="Tokens of a short answer", description="where an item asks for one"
    )
    confidence: float = Field(
        default=0.95, gt=0, lt=1, title="Confidence", description="of the interval of a change, by bootstrap over items"
    )
    resamples: int = Field(default=10_000, ge=100, le=1_000_000, title="Resamples", description="of the bootstrap")
    seed: int = Field(default=0, ge=0, le=2**32 - 1, title="Seed", description="of the bootstrap")
    batch_tokens: int = Field(
        default=2048, ge=1, le=10**8, title="Tokens per micro-batch", json_schema_extra=without_result()
    )

    @field_validator("suites", mode="before")
    @classmethod
    def _mapping_of_names(cls, value: Any) -> Any:
        """`{name: path}`, `{name: {path: ..., scorer: ...}}` and `{name: null}` (a bundled one) as a list."""
        if not isinstance(value, Mapping):
            return value
        return [_named(str(name), of) for name, of in value.items()]

    @field_validator("suites")
    @classmethod
    def _known_and_once(cls, suites: list[str | SuiteFile]) -> list[str | SuiteFile]:
        for each in suites:
            if isinstance(each, str) and each not in BUNDLED:
                raise ValueError(f"no bundled suite {each[:80]!r}; there are {', '.join(BUNDLED)}")
        names = [each if isinstance(each, str) else each.name for each in suites]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"suite {twice[0]} is named twice; give each its own name")
        return suites

    @property
    def scoring(self) -> ScoringSettings:
        return ScoringSettings(answer_tokens=self.answer_tokens, batch_tokens=self.batch_tokens)

    @property
    def harness(self) -> HarnessSettings:
        return HarnessSettings(batch_tokens=self.batch_tokens)

    @property
    def comparison(self) -> ComparisonSettings:
        return ComparisonSettings(confidence=self.confidence, resamples=self.resamples, seed=self.seed)


def _named(name: str, of: Any) -> Any:
    if of is None:
        return name
    return (
        {"name": name, "path": of} if isinstance(of, str) else {"name": name, **of} if isinstance(of, Mapping) else of
    )
