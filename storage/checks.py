"""A check: what was compared, with its figures; stored with what it was made on."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict


class Check(BaseModel):
    """The record of an invariant that was looked at. One that does not hold raises, and nothing is stored."""

    model_config = ConfigDict(frozen=True)

    name: str
    compared: str  # in words: what with what
    figures: dict[str, Any]
    checked: str  # ISO 8601, UTC
    run_id: str | None = None  # the run that looked


def checked(name: str, compared: str, **figures: Any) -> Check:
    """A check that held just now."""
    return Check(name=name, compared=compared, figures=figures, checked=datetime.now(UTC).isoformat(timespec="seconds"))
