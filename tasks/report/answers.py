"""The answers of both models as the page and result.json show them: bounded, the differences marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from foretune.storage.redaction import redacted

LISTED = 20
"""Answers in result.json; all of them are in answers.parquet."""
SHOWN = 50
"""Answers on the page."""
LONGEST, SHORT, PROMPT = 4000, 280, 600
"""Characters of an answer and of a prompt on the page, and of an answer on the first screen."""
EQUAL, REMOVED, INSERTED = 0, 1, 2
KINDS = {"equal": EQUAL, "removed": REMOVED, "inserted": INSERTED}


@dataclass(frozen=True)
class AnswerSpan:
    text: str
    mark: int  # EQUAL, REMOVED or INSERTED


@dataclass(frozen=True)
class AnswerPair:
    """One prompt with what both models answer."""

    prompt: str
    source: str  # "held-out row 3"
    equal: bool
    base: tuple[AnswerSpan, ...]
    predicted: tuple[AnswerSpan, ...]
    base_cut: bool  # ended by the bound, not by the model
    predicted_cut: bool
    notes: tuple[str, ...] = ()
    first_difference: int | None = None
    reference: str | None = None

    def sides(self, short: bool = False) -> list[tuple[str, list[AnswerSpan], bool]]:
        """Name, spans and whether the answer was cut, of the base and of the predicted model."""
        limit = SHORT if short else LONGEST
        return [
            (name, clipped(spans, limit), cut)
            for name, spans, cut in (
                ("base", self.base, self.base_cut),
                ("predicted", self.predicted, self.predicted_cut),
            )
        ]


@dataclass(frozen=True)
class AnswersView:
    pairs: Sequence[AnswerPair]
    count: int
    changed: int
    few: bool = False  # too few for a measurement
    summary: Mapping[str, Any] = field(default_factory=dict)

    def first(self, number: int) -> list[AnswerPair]:
        """Those that differ first, in their order."""
        return sorted(self.pairs, key=lambda pair: pair.equal)[:number]


def answers_view(rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> AnswersView:
    """Of answers.parquet and its summary."""
    kept = {name: value for name, value in summary.items() if not isinstance(value, bool)}
    return AnswersView([_pair(row) for row in rows[:SHOWN]], len(rows), summary["changed"], summary["few"], kept)


def listed_answers(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The first answers for result.json, their texts bounded."""
    return [
        {
            "prompt": cut(row["prompt"], PROMPT),
            "source": source_of(row),
            "base": cut(row["base"], PROMPT),
            "predicted": cut(row["predicted"], PROMPT),
            "equal": row["equal"],
            "first_difference": row["first_difference"],
        }
        for row in rows[:LISTED]
    ]


def cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def source_of(row: Mapping[str, Any]) -> str:
    """Where a prompt stands."""
    return f"prompt {row['row'] + 1}" if row["origin"] == "file" else f"{row['origin']} row {row['row']}"


def _pair(row: Mapping[str, Any]) -> AnswerPair:
    left_out = f"its first {row['cut_tokens']:,} tokens are left out: the model has no room for them"
    notes = [row["note"], left_out if row["cut_tokens"] else None]
    base, predicted = (
        _side(row["spans"], name, row[name], mark) for name, mark in (("base", REMOVED), ("predicted", INSERTED))
    )
    return AnswerPair(
        prompt=cut(row["prompt"], PROMPT),
        source=source_of(row),
        equal=row["equal"],
        base=base,
        predicted=predicted,
        base_cut=row["base_stopped"] == "length",
        predicted_cut=row["predicted_stopped"] == "length",
        notes=tuple(note for note in notes if note),
        first_difference=row["first_difference"],
        reference=None if row["reference"] is None else cut(row["reference"], PROMPT),
    )


def _side(spans: Sequence[Mapping[str, Any]], name: str, whole: str, own: int) -> tuple[AnswerSpan, ...]:
    """One model's answer as spans; as one span where a secret in it could lie across two, and would not be seen."""
    kept = [AnswerSpan(_seen(each[name], KINDS[each["kind"]]), KINDS[each["kind"]]) for each in spans]
    if redacted(whole) != whole:
        return (AnswerSpan(whole, EQUAL),)
    return tuple(span for span in kept if span.mark in (EQUAL, own) and span.text)


def _seen(text: str, mark: int) -> str:
    """A difference of blanks alone, so that it can be seen."""
    return text if mark == EQUAL or text.strip() else text.replace(" ", "␣").replace("\n", "↵\n")


def clipped(spans: Sequence[AnswerSpan], limit: int) -> list[AnswerSpan]:
    """The first `limit` characters of an answer."""
    kept: list[AnswerSpan] = []
    for span in spans:
        if len(span.text) >= limit:
            return [*kept, AnswerSpan(cut(span.text, max(limit, 1)), span.mark)]
        kept.append(span)
        limit -= len(span.text)
    return kept
