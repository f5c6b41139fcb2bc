"""Suites from files: those installed with the code, and users' own, each fault in one line.

A file holds one JSON object a line. The first may be the suite's head, `{"suite": {"measures": ...}}`, whose `defaults`
stand in every item that does not say otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from foretune.storage.datasets import dataset_at, read_rows
from foretune.storage.documents import first_fault
from foretune.storage.errors import BadInput
from foretune.storage.packaged import packaged
from foretune.storage.places import Place
from foretune.tasks.behaviour.items import ITEM, Direction, Item, Scorer, Suite, SuiteItems
from foretune.tasks.behaviour.settings import BehaviourSettings, SuiteFile

BETTER: dict[str, Direction] = {
    "choice": "higher",
    "trait": "either",
    "refusal": "higher",
    "match": "higher",
    "loss": "lower",
    "format": "higher",
}
UNITS = {
    "choice": "share right",
    "trait": "probability of the trait",
    "refusal": "probability of a refusal",
    "match": "share right",
    "loss": "nats per token",
    "format": "share in the form",
}
MEASURES = {
    "choice": "right answers among options",
    "trait": "how likely the trait is",
    "refusal": "how likely a refusal is",
    "match": "right short answers",
    "loss": "loss on these texts",
    "format": "answers in the form asked for",
}
REMEDY = "docs/suites.md has the fields"


class Head(BaseModel):
    """What a suite's file says of itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str | None = None
    measures: str | None = Field(default=None, max_length=200)
    direction: Direction | None = None
    critical: bool = False
    source: str = ""
    licence: str = ""
    scorer: Scorer | None = None
    defaults: dict[str, Any] = Field(default_factory=dict)


def chosen_suites(settings: BehaviourSettings) -> list[tuple[Suite, SuiteItems]]:
    """Every suite that a request names, with its items, cut to the number that it allows. Raises BadInput for a file
    that is missing or wrong, by its line."""
    if not settings.enabled:
        return []
    return [
        bundled(each, settings.items) if isinstance(each, str) else from_file(each, settings.items)
        for each in settings.suites
    ]


def bundled(name: str, most: int) -> tuple[Suite, SuiteItems]:
    """A suite that is installed with the code."""
    data = packaged("foretune.tasks.behaviour", f"suites/{name}.jsonl")
    rows = [(number, json.loads(line)) for number, line in enumerate(data.decode().splitlines(), start=1)]
    return _suite(name, f"suite {name}", rows, SuiteFile(name=name, path=name), most)


def from_file(file: SuiteFile, most: int) -> tuple[Suite, SuiteItems]:
    """A user's suite."""
    rows = read_rows(file.path)
    return _suite(file.name, file.path, list(zip(_lines(file.path, len(rows)), rows, strict=True)), file, most)


def _lines(uri: str, rows: int) -> list[int]:
    """The line of each row of a JSONL file, whose empty lines are none; else the number of the row."""
    if uri.lower().endswith(".jsonl"):
        lines = Place(dataset_at(uri)).read_bytes().splitlines()
        found = [number for number, line in enumerate(lines, start=1) if line.strip()]
        if len(found) == rows:
            return found
    return list(range(1, rows + 1))


def _suite(
    name: str, where: str, rows: list[tuple[int, dict[str, Any]]], file: SuiteFile, most: int
) -> tuple[Suite, SuiteItems]:
    head = Head()
    if rows and set(rows[0][1]) == {"suite"}:
        try:
            head = Head.model_validate(rows[0][1]["suite"])
        except pydantic.ValidationError as error:
            raise BadInput(f"{where}: line {rows[0][0]}: {first_fault(error)}; {REMEDY}") from None
        rows = rows[1:]
    kept = [(number, row) for number, row in rows if _wanted(row, file, where, number)]
    if not kept:
        rules = f" where {file.where}" if file.where else ""
        raise BadInput(f"{where}: no item{rules}; give at least one, a JSON object a line")
    items = {item.digest: item for item in (_item(row, number, where, file, head) for number, row in kept)}
    chosen = tuple(
        items[digest] for digest in sorted(items)[:most]
    )  # by digest: a smaller number is a part of a larger
    scorers = {item.scorer for item in chosen}
    if len(scorers) > 1:
        raise BadInput(f"{where}: items of {', '.join(sorted(scorers))} in one suite; give each scorer its own file")
    scorer = chosen[0].scorer
    suite = Suite(
        name=name,
        measures=file.measures or head.measures or MEASURES[scorer],
        direction=file.direction or head.direction or BETTER[scorer],
        critical=head.critical,
        unit=UNITS[scorer],
        source=head.source,
        licence=head.licence,
    )
    return suite, SuiteItems(suite=name, items=chosen)


def _wanted(row: Mapping[str, Any], file: SuiteFile, where: str, number: int) -> bool:
    for column, value in (file.where or {}).items():
        if column not in row:
            raise BadInput(f"{where}: line {number}: no column {column}; there are {', '.join(map(str, row))}")
        if str(row[column]) != value:
            return False
    return True


def _item(row: Mapping[str, Any], number: int, where: str, file: SuiteFile, head: Head) -> Item:
    scorer = file.scorer or head.scorer
    content: dict[str, Any] = {**({"scorer": scorer} if scorer else {}), **head.defaults, **row}
    if file.column is not None:
        if file.column not in row:
            raise BadInput(f"{where}: line {number}: no column {file.column}; there are {', '.join(map(str, row))}")
        content = {"scorer": scorer, "text" if scorer == "loss" else "prompt": row[file.column]}
    if "messages" in content:
        content["prompt"] = content.pop("messages")
    if isinstance(content.get("expected"), str):
        content["expected"] = [content["expected"]]
    try:
        return ITEM.validate_python(content)
    except pydantic.ValidationError as error:
        raise BadInput(f"{where}: line {number}: {first_fault(error)}; {REMEDY}") from None
