"""What does not grow with the rows, cut to what a budget leaves for it: suites, comparisons, curvature, causes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from foretune.flows.request import Request
from foretune.tasks.behaviour.suite_files import chosen_suites

CHARACTERS = 4
"""About so many make a token: what is planned here decides settings, and the estimates of the passes count."""

FEWEST: Mapping[str, int] = {
    "behaviour.items": 8,
    "behaviour.path.points": 0,
    "behaviour.path.orders": 1,
    "behaviour.path.nulls": 1,
    "behaviour.path.items": 4,
    "influence.suite_items": 4,
    "diff.rows": 16,
    "answers.rows": 4,
    "prediction.evaluation_rows": 12,
    "curvature.rows": 4,
    "concept_causes.features": 3,
    "concept_causes.rows": 8,
    "concept_causes.suites": 1,
}
"""Settings that a budget lowers, and to what at least; what a request sets lower stays."""

ROW_PASSES = 30
"""Forwards of a held-out row of each comparison and of a curvature row, all passes over it together."""


def fixed_tokens(request: Request, row_tokens: float) -> float:
    """Tokens through the model of all that does not grow with the rows, about; `row_tokens` are a row's."""
    suites = [items for _, items in chosen_suites(request.behaviour)]
    asked, along = request.behaviour, request.behaviour.path
    count = sum(len(items.items) for items in suites) or 1
    item = sum(len(text) for items in suites for text in items.texts) / CHARACTERS / count
    others = along.points + along.orders + along.nulls
    of_suites = item * len(suites) * (2 * asked.items + others * along.items) + 6 * item * request.influence.suite_items
    rows = request.diff.rows / 4 + request.curvature.rows + request.prediction.evaluation_rows / 2
    return of_suites + rows * row_tokens * ROW_PASSES


def within(request: Request, share: float) -> Request:
    """The request with this share of what FEWEST names, nothing below what that asks for."""
    changed: Request = request
    for path, fewest in FEWEST.items() if share < 1 else ():
        changed = _with(changed, path.split("."), share, fewest)
    return changed


def _with(model: Any, path: list[str], share: float, fewest: int) -> Any:
    name, *further = path
    value = getattr(model, name)
    if isinstance(value, BaseModel):
        return model.model_copy(update={name: _with(value, further, share, fewest)})
    return model.model_copy(update={name: min(value, max(fewest, int(share * value)))})
