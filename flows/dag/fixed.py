"""What does not grow with the rows, cut to what a budget leaves for it: suites, comparisons, curvature, causes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from foretune.flows.request import Request
from foretune.tasks.behaviour.items import SuiteItems
from foretune.tasks.behaviour.suite_files import chosen_suites

CHARACTERS = 4
"""About so many make a token: what is planned here decides settings, and the estimates of the passes count."""

ASKED_FEWEST: Mapping[str, int] = {
    "behaviour.items": 8,
    "behaviour.path.points": 0,
    "behaviour.path.orders": 0,
    "behaviour.path.nulls": 1,
    "behaviour.path.items": 3,
    "influence.suite_items": 4,
    "answers.rows": 4,
    "answers.max_new_tokens": 24,
}
"""Settings of what is asked of the models, suites and prompts, that a budget lowers, and to what at least: fewer items
have no verdict, and a suite without any noise has none either. What a request sets lower stays."""

PAIRS_FEWEST: Mapping[str, int] = {"behaviour.path.orders": 1}
"""The noise of a loss of pairs is that of other orders alone."""

FEWEST: Mapping[str, int] = {
    "diff.rows": 12,
    "diff.nulls.deltas": 4,
    "features.nulls.draws": 4,
    "prediction.evaluation_rows": 8,
    "prediction.path_points": 2,
    "curvature.rows": 2,
    "concept_causes.features": 2,
    "concept_causes.rows": 6,
    "concept_causes.suites": 1,
    "concept_causes.items": 4,
    "concept_causes.answers": 2,
    "features.naming.rows": 16,
}
"""The same of comparisons, curvature and causes: as few as leave an error to tell. Half as many again, or twice,
were 0.3 of the real run over 96 rows of 90 tokens for three epochs."""

ROW_PASSES = 40
"""Forwards of a held-out row of each comparison and of a curvature row, all passes over it together."""

NAMED_PASSES = 1.2
"""The same of a row that concepts are named from: twice, to the SAE's layer."""


def asked_tokens(request: Request, row_tokens: float) -> float:
    """Tokens through the model of suites and answers, about; `row_tokens` are a row's."""
    suites = [items for _, items in chosen_suites(request.behaviour)]
    asked, along, answers = request.behaviour, request.behaviour.path, request.answers
    item = _item_tokens(suites)
    others = along.points + along.orders + along.nulls
    of_suites = item * len(suites) * (2 * asked.items + others * along.items) + 6 * item * request.influence.suite_items
    return of_suites + 8 * answers.rows * (row_tokens + answers.max_new_tokens)


def other_tokens(request: Request, row_tokens: float) -> float:
    """Tokens through the model of whatever else does not grow with the rows, about."""
    rows = request.diff.rows / 4 + request.curvature.rows + request.prediction.evaluation_rows / 2
    return rows * row_tokens * ROW_PASSES + (concept_tokens(request, row_tokens) if request.sae is not None else 0.0)


def concept_tokens(request: Request, row_tokens: float) -> float:
    """The same of naming concepts, and of trying what they carry of suites and answers."""
    named, tried = NAMED_PASSES * request.features.naming.rows * row_tokens, request.concept_causes
    if not tried.features:
        return named
    item = _item_tokens([items for _, items in chosen_suites(request.behaviour)])
    read = 2 * tried.items * tried.suites * item + tried.answers * (row_tokens + request.answers.max_new_tokens)
    return named + tried.behaviour.forwards * read


def _item_tokens(suites: Sequence[SuiteItems]) -> float:
    """Of an item of these suites, about."""
    count = sum(len(items.items) for items in suites) or 1
    return sum(len(text) for items in suites for text in items.texts) / CHARACTERS / count


def within(request: Request, share: float, asked: float, paired: bool) -> Request:
    """The request with these shares of what FEWEST and of what ASKED_FEWEST names, nothing below what they ask for."""
    fewest_asked = {**ASKED_FEWEST, **(PAIRS_FEWEST if paired else {})}
    changed: Request = request
    for part, names in ((share, FEWEST), (asked, fewest_asked)):
        for path, fewest in names.items() if part < 1 else ():
            changed = _with(changed, path.split("."), part, fewest)
    return changed


def _with(model: Any, path: list[str], share: float, fewest: int) -> Any:
    name, *further = path
    value = getattr(model, name)
    if isinstance(value, BaseModel):
        return model.model_copy(update={name: _with(value, further, share, fewest)})
    return model.model_copy(update={name: min(value, max(fewest, int(share * value)))})
