"""The first lines of every page: which request it answers."""

from __future__ import annotations

from pydantic import BaseModel


class RequestLines(BaseModel, frozen=True):
    """What the report's first lines say about the request."""

    name: str
    dataset: str
    rows: int
    model: str
    adapter: str
    training: str
    max_length: int | None
    spike_norm: float | None
    effort: str | None = None  # what was looked at, where a budget bounds it
    more_saes: tuple[str, ...] = ()  # their names and hooks, beside the first
    saes: str = ""  # which are read, and what was chosen where the request left it open
    neuronpedia_id: str | None = None  # of the SAE, where the request names one
