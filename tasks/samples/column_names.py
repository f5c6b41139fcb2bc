"""Which column of a dataset holds what, and what its messages call their role and content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from foretune.tasks.samples.mappings import ENTRY_KEYS, as_columns


def _with_other_trainers_entries(schema: dict[str, Any]) -> None:
    """Their keys in the JSON schema, too: a deployment holds its parameters against that."""
    schema["patternProperties"] = {ENTRY_KEYS: {}}


class ColumnNames(BaseModel):
    """Which column holds what, when the dataset's columns have names of their own.

    An entry of LLaMA-Factory's dataset_info.json or of axolotl's datasets is understood in their place.
    """

    model_config = ConfigDict(extra="forbid", title="Columns", json_schema_extra=_with_other_trainers_entries)

    version: Literal[1] = 1
    text: str | None = Field(default=None, description="column read as `text`")
    messages: str | None = Field(default=None, description="column read as `messages`")
    prompt: str | None = Field(default=None, description="column read as `prompt`")
    completion: str | None = Field(default=None, description="column read as `completion`")
    chosen: str | None = Field(default=None, description="column read as `chosen`")
    rejected: str | None = Field(default=None, description="column read as `rejected`")
    instruction: str | None = Field(default=None, description="column read as `instruction`")
    input: str | None = Field(default=None, description="column read as `input`, after the instruction")
    context: str | None = Field(default=None, description="column read as `context`, before or after the question")
    output: str | None = Field(default=None, description="column read as `output`")
    question: str | None = Field(default=None, description="column read as `question`")
    answer: str | None = Field(default=None, description="column read as `answer`")
    response: str | None = Field(default=None, description="column read as `response`")
    system: str | None = Field(default=None, description="column read as `system`, the first turn")
    history: str | None = Field(default=None, description="column read as `history`, pairs of earlier turns")
    tools: str | None = Field(default=None, description="column read as `tools`")
    role: str | None = Field(default=None, description="key of a message read as `role`")
    content: str | None = Field(default=None, description="key of a message read as `content`")
    speakers: dict[str, Literal["user", "assistant", "system", "tool", "function_call"]] | None = Field(
        default=None,
        description="role of speakers called otherwise, as in {customer: user}; function_call: its text is calls",
    )

    @model_validator(mode="before")
    @classmethod
    def _other_trainers_entries(cls, content: Any) -> Any:
        return as_columns(content)

    def given(self) -> dict[str, str]:
        """{name that the forms know: the dataset's own column}."""
        return self.model_dump(exclude={"version", *IN_MESSAGES}, exclude_none=True)

    def identity(self) -> dict[str, Any]:
        """For keys: what came later counts only where it is given, so that what was stored before it stays."""
        whole = self.model_dump(mode="json")
        return {name: value for name, value in whole.items() if name not in LATER or value is not None}

    def message(self, value: Any) -> Any:
        """A message with its role and content under their own names."""
        if not isinstance(value, Mapping) or not (self.role or self.content or self.speakers):
            return value
        message = dict(value)
        if self.content and self.content in message:
            message = {**message, "content": message.pop(self.content)}
        key = self.role or ("role" if "role" in message else "from")
        speaker = message.pop(key, None)
        role = (self.speakers or {}).get(speaker) if isinstance(speaker, str) else None
        if role == "function_call":
            said = message.pop("content", None) if message.get("value") is None else message.pop("value")
            return {"from": role, "value": said, **message}
        if role is None and self.role not in (None, "role", "from") and speaker not in ROLES_AS_THEY_ARE:
            return message if speaker is None else {"from": speaker, "value": message.pop("content", None), **message}
        return message if speaker is None else {"role" if role else key: role or speaker, **message}


IN_MESSAGES = ("role", "content", "speakers")
LATER = ("tools", *IN_MESSAGES)
ROLES_AS_THEY_ARE = ("user", "assistant", "system", "tool")
