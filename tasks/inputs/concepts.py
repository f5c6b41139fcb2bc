"""How concepts are held against noise, named and grouped: settings that more than one stage reads."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from foretune.tasks.engine.keys import without_result

FEWEST_NULLS = 4
"""Below, pooling over features does not make up for the few draws."""


class FeatureNullSettings(BaseModel):
    """Random deltas of the prediction's norm and rank: how much every feature moves by itself."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="Null deltas of the concepts")

    version: Literal[1] = 1
    draws: int = Field(
        default=8, ge=0, le=256, title="Null deltas", description="each costs a forward to the SAE's layer; 0: none"
    )
    rows: int = Field(default=64, ge=2, le=100_000, title="Rows", description="of those compared, at most")
    seed: int = Field(default=0, ge=0, le=2**31 - 1, title="Seed of the null deltas")

    @field_validator("draws")
    @classmethod
    def _enough_for_a_spread(cls, value: int) -> int:
        if 0 < value < FEWEST_NULLS:
            raise ValueError(f"{value} have no spread to speak of; give at least {FEWEST_NULLS}, or 0 for none")
        return value


class FiringSettings(BaseModel):
    """From what text features without a label in the file are named."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="Text that names are made from")

    version: Literal[1] = 1
    rows: int = Field(default=192, ge=1, le=100_000, title="Training rows read", description="beside those compared")
    batch_tokens: int = Field(
        default=4096, ge=1, le=10**8, title="Tokens per micro-batch", json_schema_extra=without_result()
    )


class LabelEndpoint(BaseModel):
    """Where a language model is asked for names. It is sent contexts of features: text of the rows."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="Endpoint that writes names")

    version: Literal[1] = 1
    url: str = Field(
        title="Address",
        description="of an OpenAI-compatible API, as http://localhost:8000/v1; text of the rows is sent there",
        json_schema_extra=without_result(),
    )
    model: str = Field(min_length=1, max_length=200, title="Model")
    key_variable: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        title="Variable of the key",
        description="environment variable that holds the API key, which is stored nowhere; none: no key",
        json_schema_extra=without_result(),
    )
    features: int = Field(
        default=40, ge=1, le=1000, title="Features asked about", description="those that moved most, a request each"
    )
    timeout: float = Field(
        default=30,
        gt=0,
        le=600,
        title="Time-out",
        description="seconds per request",
        json_schema_extra=without_result(),
    )
    attempts: int = Field(default=3, ge=1, le=10, title="Attempts", json_schema_extra=without_result())
    again: int = Field(
        default=0, ge=0, le=1_000_000, title="Asked again", description="raise it to ask once more, after a failure"
    )

    @field_validator("url")
    @classmethod
    def _plain_address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("give an address as http://localhost:8000/v1")
        if parts.username or parts.password:
            raise ValueError("holds credentials; name an environment variable in key_variable")
        return value.rstrip("/")


class NamingSettings(FiringSettings):
    """From what text features without a label in the file are named, and how every label is tested."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="Names of the concepts")

    contexts: int = Field(
        default=20, ge=4, le=1000, title="Contexts per label", description="that it has to tell from as many others"
    )
    clear: float = Field(
        default=0.6, ge=0.5, le=1, title="Clear from", description="AUROC of the test, below which a name is unclear"
    )
    endpoint: LabelEndpoint | None = Field(
        default=None, title="Endpoint that writes names", description="none: nothing leaves this machine"
    )

    @property
    def read(self) -> FiringSettings:
        """The part that says what is read: nothing else reads it again."""
        return FiringSettings(**self.model_dump(include=set(FiringSettings.model_fields)))


class FamilySettings(BaseModel):
    """When features that move to the same side are told as one concept."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="Families of concepts")

    version: Literal[1] = 1
    cosine: float = Field(default=0.5, ge=0, le=1, title="Same direction from", description="cosine of decoder rows")
    cofiring: float = Field(
        default=0.3, ge=0, le=1, title="Same tokens from", description="tokens of both, as a share of either's"
    )


class ConceptBehaviourSettings(BaseModel):
    """In how many suites and answers it is tried which concepts carry the change, and how."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="Causes among concepts, of behaviour")

    version: Literal[1] = 1
    features: int = Field(json_schema_extra=without_result())  # those of `concept_causes`
    suites: int
    items: int
    answers: int
    controls: int
    to: Literal["base", "zero"]
    bootstrap: int
    seed: int
    batch_tokens: int = Field(json_schema_extra=without_result())

    @property
    def forwards(self) -> int:
        """Most forward passes over what is read."""
        return 2 + self.features * (1 + self.controls)
