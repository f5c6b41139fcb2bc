"""What the base and the predicted model are asked, and how long they may answer."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from foretune.tasks.engine.keys import without_result


class AnswerSettings(BaseModel):
    """What both models are asked, side by side; 0 rows and no file: nothing."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="Answers")

    version: Literal[1] = 1
    prompts: str | None = Field(
        default=None,
        title="Prompts",
        description="file of plain lines, or JSONL of prompt or messages; all of it is asked; local or s3://",
        json_schema_extra={"affects_result": False},
    )
    rows: int = Field(
        default=8,
        ge=0,
        le=1000,
        title="Held-out prompts",
        description="asked beside the file's, chosen by what they say; probes with a prompt come first",
    )
    max_new_tokens: int = Field(default=48, ge=1, le=4096, title="Longest answer", description="tokens")
    samples: int = Field(
        default=0, ge=0, le=64, title="Samples", description="drawn per prompt, beside the greedy answer"
    )
    temperature: float = Field(default=1.0, gt=0, le=100, title="Temperature", description="of the samples")
    seed: int = Field(default=0, ge=0, le=2**63 - 1, title="Seed", description="of the samples")
    batch_tokens: int = Field(
        default=4096, ge=1, le=10**8, title="Tokens per batch", json_schema_extra=without_result()
    )

    @property
    def asks(self) -> bool:
        return self.rows > 0 or self.prompts is not None

    def generation(self) -> GenerationSettings:
        """What of it decides an answer, once the prompts are chosen."""
        return GenerationSettings(**self.model_dump(include=set(GenerationSettings.model_fields) - {"version"}))


class GenerationSettings(BaseModel):
    """How one model answers: greedily, and with `samples` draws."""

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    max_new_tokens: int = 48
    samples: int = 0
    temperature: float = 1.0
    seed: int = 0
    batch_tokens: int = 4096

    def identity(self) -> dict[str, Any]:
        """Without samples neither their temperature nor their seed says anything."""
        drawn = {"samples", "temperature", "seed"} if self.samples else set[str]()
        return self.model_dump(include={"max_new_tokens", *drawn})
