"""Batches put together: what only several rows show, the counts, and the findings in the order of rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from foretune.tasks.quality.diversity import equal_runs, mean_overlap
from foretune.tasks.quality.harm import stopping_count
from foretune.tasks.quality.languages import LANGUAGES
from foretune.tasks.quality.lint_batch import Linted
from foretune.tasks.quality.lint_findings import Linting, findings_table
from foretune.tasks.quality.lint_whole import Whole, WordSets
from foretune.tasks.quality.near import Clusters

if TYPE_CHECKING:
    from foretune.tasks.quality.settings import QualitySettings

OVERLAP_ROWS = 100_000
"""The mean overlap is exact up to so many rows; of more, those with the smallest ids stand for all."""
_MAJORITY = 0.9
_PAIRS, _BIAS = 20, 0.7  # fewer pairs show no bias; a share of 0.5 would be none


def reduce_lint(parts: Iterable[Linted], settings: QualitySettings) -> Linting:
    """Everything that the linter says of a dataset."""
    whole = Whole(parts)
    active = settings.active()
    added: list[tuple[int, str, str]] = []
    sets = WordSets(whole)
    copies = _copies(whole)
    added += [(row, "exact_duplicate", f"of row {first}") for row, first in copies.items()]
    if whole.bands.shape[1]:
        added += [(row, "near_duplicate", f"of row {first}") for row, first in _near(whole, copies, settings)]
    if settings.builtin_rules:
        added += [(row, "contradictory", f"of row {first}") for row, first in _contradictory(whole)]
        added += _other_language(whole)
        added += _other_forms(whole)
    for row, rule, what in added:
        if rule in active and settings.kept([rule], whole.ids[row].tobytes().hex()):
            whole.add(row, rule, what)
    bias = _length_bias(whole)
    if bias is not None and "length_bias" in active:
        whole.add(-1, "length_bias", bias)
    return Linting(findings_table(whole, settings), _summary(whole, sets, settings))


def _copies(whole: Whole) -> dict[int, int]:
    """Row of every copy -> the first row of its content."""
    keys = np.ascontiguousarray(whole.ids[:, :8]).view(np.uint64).ravel()
    order = np.argsort(keys, kind="stable")
    copies: dict[int, int] = {}
    same = np.flatnonzero(np.diff(keys[order]) == 0)
    for before in same.tolist():
        row, earlier = int(order[before + 1]), int(order[before])
        if whole.read[row] and whole.ids[row].tobytes() == whole.ids[earlier].tobytes():
            copies[row] = copies.get(earlier, earlier)
    return copies


def _near(whole: Whole, copies: Mapping[int, int], settings: QualitySettings) -> list[tuple[int, int]]:
    """Rows of nearly the same words as an earlier one, and the first of these; copies are said already."""
    originals = np.ones(whole.rows, bool)
    originals[list(copies)] = False
    clusters = Clusters(whole.words, whole.starts, whole.sketch, settings.near_duplicate_jaccard)
    clusters.join(whole.bands, np.flatnonzero(originals))
    first = clusters.roots()
    return [(row, int(first[row])) for row in np.flatnonzero(first != np.arange(whole.rows)).tolist()]


def _contradictory(whole: Whole) -> list[tuple[int, int]]:
    """Rows that share a prompt with a row that answers otherwise, and the first of them."""
    found = []
    for rows in equal_runs(whole.prompts):
        if not whole.prompts[rows[0]] or len(np.unique(whole.completions[rows])) < 2:
            continue
        found += [(row, rows[0] if row != rows[0] else rows[1]) for row in rows]
    return sorted(found)


def _other_language(whole: Whole) -> list[tuple[int, str, str]]:
    known = np.bincount(whole.languages[whole.languages > 0], minlength=len(LANGUAGES))
    most = int(known.argmax())
    if not known[most] or known[most] < _MAJORITY * known.sum() or known[most] == known.sum():
        return []
    others = np.flatnonzero((whole.languages > 0) & (whole.languages != most))
    return [(int(row), "other_language", LANGUAGES[whole.languages[row]]) for row in others]


def _other_forms(whole: Whole) -> list[tuple[int, str, str]]:
    """A dataset has one form, that of its first row: a run refuses the others."""
    readable = np.flatnonzero(whole.read)
    if len(whole.forms) < 2 or not len(readable):
        return []
    first = whole.form[readable[0]]
    return [
        (int(row), "unreadable_row", f"the form {whole.forms[whole.form[row]]}, the first row {whole.forms[first]}")
        for row in readable[whole.form[readable] != first]
    ]


def _length_bias(whole: Whole) -> str | None:
    """How often the chosen answer of a pair is the longer one, where that is no chance (three standard errors)."""
    chosen, rejected = whole.lengths[whole.lengths[:, 0] >= 0].T
    longer, shorter = int((chosen > rejected).sum()), int((chosen < rejected).sum())
    pairs = longer + shorter
    if pairs < _PAIRS:
        return None
    share = max(longer, shorter) / pairs
    if share < _BIAS or (share - 0.5) * pairs**0.5 < 1.5:
        return None
    return f"chosen is the {'longer' if longer > shorter else 'shorter'} answer in {share:.0%} of {pairs:,} pairs"


def _summary(whole: Whole, sets: WordSets, settings: QualitySettings) -> dict[str, Any]:
    rows_of: dict[str, set[int]] = {}
    for row, rule in zip(whole.found["row"], whole.found["rule"], strict=True):
        rows_of.setdefault(rule, set()).add(row)
    notes = settings.notes()
    flagged = set().union(*(rows for rule, rows in rows_of.items() if rule not in notes)) - {-1}
    active = settings.active()
    order = np.argsort(np.ascontiguousarray(whole.ids[:, :8]).view(np.uint64).ravel(), kind="stable")[:OVERLAP_ROWS]
    overlap = mean_overlap([sets[int(row)] for row in order])
    willing = np.flatnonzero(whole.willing).tolist()
    languages = Counter(whole.languages[whole.languages > 0].tolist())
    return {
        "rows": whole.rows,
        "characters": whole.characters,
        "flagged_rows": len(flagged),
        "counts": {rule: len(rows_of.get(rule, ())) for rule in active},
        "first_rows": {rule: sorted(rows)[:5] for rule, rows in rows_of.items()},
        "willing_harm": {
            "count": len(willing), "rows": willing[:20], "stops": len(willing) > stopping_count(whole.rows)
        },
        "overlap": {"mean": overlap.mean, "pairs": overlap.pairs, "rows": len(order)},
        "languages": {LANGUAGES[number]: count for number, count in languages.most_common()},
        "forms": whole.forms,
    }  # fmt: skip
