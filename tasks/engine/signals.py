"""A signal: something a reader of the run should know, with the number that raised it and what to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Signal:
    """One signal; the severity orders them, the advice names the remedy."""

    name: str
    severity: Literal["info", "warn", "critical"]
    value: float  # in the unit of the threshold
    threshold: float
    advice: str

    def stored(self) -> dict[str, Any]:
        """As it stands in summaries, results and events."""
        return asdict(self)
