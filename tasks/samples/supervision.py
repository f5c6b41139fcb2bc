"""Rows as the trainer sees them: which tokens are trained, which are read only, which cut off. No model is opened."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

from foretune.tasks.samples.forms import CanonicalRow, as_plain_text, canonical_rows
from foretune.tasks.samples.loss_masks import Labelled, LossRules, labelled_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from foretune.tasks.samples.chat import ChatTokenizer
    from foretune.tasks.samples.table import DatasetSettings

State = Literal["trained", "masked", "cut_off"]


@dataclass(frozen=True)
class Piece:
    """Neighbouring tokens that are treated alike, as text."""

    text: str
    state: State
    special: bool  # one special token, written as the tokenizer names it
    tokens: int


@dataclass(frozen=True)
class Supervised:
    """A token sequence of a row, whole, and how much of it a trainer keeps."""

    name: str  # "row"; of a pair "chosen" and "rejected"
    ids: list[int]  # before truncation
    loss_mask: list[bool]  # True = the token would be a label
    kept: int  # tokens before the cut

    @property
    def trained(self) -> int:
        """Labels that have a loss: nothing precedes a row's first token."""
        return sum(self.loss_mask[1 : self.kept])

    @property
    def cut_off(self) -> int:
        return len(self.ids) - self.kept

    @property
    def masked(self) -> int:
        """Tokens that are read only."""
        return self.kept - self.trained

    def counts(self) -> dict[str, int]:
        return {"tokens": len(self.ids), "trained": self.trained, "masked": self.masked, "cut_off": self.cut_off}


@dataclass(frozen=True)
class SeenRow:
    """A row with its sequences: one, or of a pair two."""

    canonical: CanonicalRow
    sequences: tuple[Supervised, ...]

    @property
    def row(self) -> int:
        return self.canonical.row


@dataclass(frozen=True)
class Seen:
    """A dataset as the trainer sees it."""

    rows: list[SeenRow]
    tokenizer: ChatTokenizer  # with the template that is really rendered
    rules: LossRules
    marks_missing: bool  # assistant_only_loss was asked for and no template can say what the assistant says

    def counts(self) -> dict[str, int]:
        """Tokens of all rows together."""
        every = [sequence.counts() for row in self.rows for sequence in row.sequences]
        return {name: sum(each[name] for each in every) for name in ("tokens", "trained", "masked", "cut_off")}


def seen_rows(rows: Sequence[Mapping[str, Any]], tokenizer: ChatTokenizer, settings: DatasetSettings) -> Seen:
    """Every row of a file, held-out ones too. Raises BadInput as reading samples does, but for missing marks: then
    the rows are shown as they would be trained on without assistant_only_loss."""
    canonical = canonical_rows(rows, settings.columns)
    if not tokenizer.has_template:
        canonical = [as_plain_text(row) if row.adaptable else row for row in canonical]
    rules = settings.loss_rules("train")
    missing = False
    if rules.assistant_only_loss and canonical and canonical[0].conversational and tokenizer.has_template:
        tokenizer = tokenizer.marked()
        missing = not tokenizer.marks_assistant
        rules = replace(rules, assistant_only_loss=not missing)
    whole = labelled_rows(canonical, tokenizer, replace(rules, max_length=None))
    seen = [
        SeenRow(row, tuple(sequences_of(row, [labelled.answer, labelled.rejected], rules)))
        for row, labelled in zip(canonical, whole, strict=True)
    ]
    return Seen(seen, tokenizer, rules, missing)


def sequences_of(row: CanonicalRow, parts: Sequence[Labelled | None], rules: LossRules) -> Iterator[Supervised]:
    names = ("chosen", "rejected") if row.form == "preference" else ("row", "")
    for name, part in zip(names, parts, strict=True):
        if part is not None:
            kept = len(part.input_ids) if rules.max_length is None else min(len(part.input_ids), rules.max_length)
            yield Supervised(name, part.input_ids, part.loss_mask, kept)


def pieces(sequence: Supervised, tokenizer: ChatTokenizer) -> list[Piece]:
    """A sequence as text that can be read, in pieces; every special token is a piece of its own."""
    special = {number for number, token in tokenizer.backend.get_added_tokens_decoder().items() if token.special}

    def kind(at: int) -> tuple[State, bool, int]:
        label = sequence.loss_mask[at] and at > 0
        state: State = "cut_off" if at >= sequence.kept else "trained" if label else "masked"
        return state, sequence.ids[at] in special, at if sequence.ids[at] in special else -1

    found, start = [], 0
    for (state, is_special, _), group in groupby(range(len(sequence.ids)), key=kind):
        end = start + sum(1 for _ in group)
        found.append(Piece(_text(sequence.ids, start, end, tokenizer), state, is_special, end - start))
        start = end
    return found


@dataclass(frozen=True)
class Token:
    """One token of a sequence, and what a trainer does with it."""

    position: int
    id: int
    text: str  # "" where its bytes only end a character with those of the next ones, which have the text
    state: State
    special: bool


def tokens(sequence: Supervised, tokenizer: ChatTokenizer, first: int, last: int) -> list[Token]:
    """The first and the last tokens of a sequence, with texts that together are the text of the pieces."""
    special = {number for number, token in tokenizer.backend.get_added_tokens_decoder().items() if token.special}
    length = len(sequence.ids)
    wanted = [*range(min(first, length)), *range(max(length - last, min(first, length)), length)]
    states: list[State] = [
        "cut_off" if at >= sequence.kept else "trained" if sequence.loss_mask[at] and at else "masked" for at in wanted
    ]
    found, start = [], 0
    for number, (at, state) in enumerate(zip(wanted, states, strict=True)):
        following = wanted[number + 1 : number + 2] == [at + 1] and states[number + 1] == state
        start = at if not number or wanted[number - 1] != at - 1 or states[number - 1] != state else start
        text = _text(sequence.ids, start, at + 1, tokenizer)
        if text.endswith("\ufffd") and following and at - start < LONGEST_CHARACTER - 1:
            text = ""
        else:
            start = at + 1
        found.append(Token(at, sequence.ids[at], text, state, sequence.ids[at] in special))
    return found


LONGEST_CHARACTER = 4
"""Bytes of a character in UTF-8, and so tokens."""
CONTEXT = 8
"""Tokens before a piece that are decoded with it: a decoder drops the space that begins a text."""


def _text(ids: Sequence[int], start: int, end: int, tokenizer: ChatTokenizer) -> str:
    before = list(ids[max(start - CONTEXT, 0) : start])
    alone = tokenizer.backend.decode(before, skip_special_tokens=False)
    together = tokenizer.backend.decode([*before, *ids[start:end]], skip_special_tokens=False)
    if together.startswith(alone):
        return together[len(alone) :]
    return tokenizer.backend.decode(list(ids[start:end]), skip_special_tokens=False)  # a character in two pieces
