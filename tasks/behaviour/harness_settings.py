"""Which tasks of lm-evaluation-harness are suites, and how each is asked."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from foretune.tasks.engine.keys import without_result


class HarnessChoice(BaseModel):
    """A task of lm-evaluation-harness with settings of its own."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="Task of lm-evaluation-harness")

    task: str = Field(min_length=1, max_length=1000, title="Task", description="its name, or the path of its YAML file")
    name: str | None = Field(
        default=None, title="Name", description="of the suite; without it the task's, in small letters"
    )
    metric: str | None = Field(
        default=None,
        max_length=100,
        title="Metric",
        description="one that has a value for every item; without it acc_norm, acc or exact_match, else the first",
    )
    limit: int | None = Field(
        default=None, ge=1, le=1_000_000, title="Items", description="the first ones; without it behaviour.items"
    )
    num_fewshot: int | None = Field(
        default=None, ge=0, le=1000, title="Examples before the question", description="without it the task's own"
    )
    chat_template: bool = Field(
        default=False, title="Chat template", description="whether the question is a user's turn; lm-eval's default: no"
    )


class HarnessSettings(BaseModel):
    """How a model is asked."""

    version: Literal[1] = 1
    batch_tokens: int = Field(json_schema_extra=without_result())
