"""A dataset looked through: rows as the trainer sees them, with what every rule finds in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foretune.storage.datasets import dataset_at, read_rows
from foretune.storage.errors import BadInput
from foretune.tasks.loading.settings import ModelSettings
from foretune.tasks.loading.tokenizer_sources import resolve_tokenizer
from foretune.tasks.samples.chat import load_tokenizer
from foretune.tasks.samples.supervision import Seen, seen_rows
from foretune.tasks.samples.supervision_findings import RULES, Finding, in_order, marks_missing, other_splits_finding
from foretune.tasks.samples.supervision_tally import Tally
from foretune.tasks.samples.table import DatasetSettings
from foretune.tasks.samples.template_findings import row_findings
from foretune.tasks.samples.unread import unread_splits


@dataclass(frozen=True)
class Inspection:
    """What `foretune inspect` found."""

    folder: Path  # of the tokenizer
    seen: Seen
    findings: list[Finding]  # in the order of RULES

    def rows_of(self, rule: str) -> list[int]:
        """Numbers of the rows that a rule found; all of them for one of every row. BadInput for an unknown rule."""
        if rule not in RULES:
            raise BadInput(f"--flag {rule}: no such rule; known are {', '.join(RULES)}")
        found = next((each for each in self.findings if each.rule == rule), None)
        if found is None:
            return []
        return [row.row for row in self.seen.rows] if found.rows is None else found.rows


def inspect_dataset(settings: DatasetSettings, model: ModelSettings) -> Inspection:
    """Read a dataset and a model's tokenizer, never its weights; every row, held-out ones too."""
    rows = read_rows(dataset_at(settings.path))
    folder = resolve_tokenizer(model)
    return inspect_rows(rows, folder, settings, unread_splits(settings))


def inspect_rows(
    rows: Sequence[Mapping[str, Any]], folder: Path, settings: DatasetSettings, splits: Sequence[str] = ()
) -> Inspection:
    """The same of rows in memory and a local folder; `splits` are those beside them that are not read."""
    seen = seen_rows(rows, load_tokenizer(folder), settings)
    canonical = [row.canonical for row in seen.rows]
    tally = Tally(seen.tokenizer, folder, seen.rules)
    for row in seen.rows:
        tally.add(row)
    found = [*tally.findings(), *row_findings(canonical, seen.tokenizer, rows, settings), *other_splits_finding(splits)]
    if seen.marks_missing:
        found.append(marks_missing())
    return Inspection(folder, seen, in_order(found))
