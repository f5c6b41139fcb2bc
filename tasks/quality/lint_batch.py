"""One batch of a dataset as the linter reads it: what its rows say by themselves, and what is needed to compare them.

A batch knows nothing of the others, so any number of processes may read them; row numbers count from the batch's own
first row until `lint` puts the batches in order.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from foretune.storage.errors import BadInput
from foretune.storage.row_batches import Batch, Unread, parsed
from foretune.tasks.quality.ascii_texts import AsciiTexts
from foretune.tasks.quality.languages import LANGUAGES
from foretune.tasks.quality.near import band_and_sketch
from foretune.tasks.quality.phrases import ascii_twin
from foretune.tasks.quality.quiet import QuietRows
from foretune.tasks.quality.rows import RowRules, Texts
from foretune.tasks.quality.tool_calls import tool_faults
from foretune.tasks.quality.word_arrays import NON_SPACE, WORD_BYTES, WordArrays, buffer_of, short, words_of
from foretune.tasks.quality.word_arrays import joined as joined_words
from foretune.tasks.samples.forms import CanonicalRow, ColumnNames, canonical_rows, shown_texts
from foretune.tasks.samples.ids import identify
from foretune.tasks.samples.plain_rows import PlainRow, plain_row

if TYPE_CHECKING:
    from foretune.tasks.quality.leakage import LeakIndex
    from foretune.tasks.quality.settings import QualitySettings

_ROW = re.compile(r"^row \d+(?:, message (\d+))?[:,]? ?")
_LANGUAGE = {language: number for number, language in enumerate(LANGUAGES)}
ID_BYTES = 32


@dataclass
class Found:
    """Findings, a list a column; `row` counts from the batch's first."""

    row: list[int] = field(default_factory=list)
    rule: list[str] = field(default_factory=list)
    part: list[str] = field(default_factory=list)
    start: list[int] = field(default_factory=list)
    end: list[int] = field(default_factory=list)
    what: list[str] = field(default_factory=list)

    def add(self, row: int, rule: str, part: str, start: int, end: int, what: str) -> None:
        self.row.append(row)
        self.rule.append(rule)
        self.part.append(part)
        self.start.append(start)
        self.end.append(end)
        self.what.append(what)


@dataclass
class Linted:
    """What one batch hands over. Arrays are a value per row; a row that cannot be read is False in `read`."""

    rows: int
    characters: int
    found: Found
    read: np.ndarray  # bool
    lines: np.ndarray  # int64; 0 where a file has none
    ids: np.ndarray  # [rows, 32] uint8: the sample id
    prompts: np.ndarray  # uint64 digest of the normalised prompt; 0 without one
    completions: np.ndarray  # uint64
    languages: np.ndarray  # uint8, of the completion
    forms: list[str]  # the different forms, and which of them each row has
    form: np.ndarray  # uint8
    lengths: np.ndarray  # [rows, 2] int32: words of chosen and rejected; -1 where the row is no pair
    willing: np.ndarray  # bool: asks for harm and answers willingly
    words: np.ndarray  # uint32 hashes of the different words, sorted, row after row
    ends: np.ndarray  # int64 [rows]: where each row's words end
    bands: np.ndarray  # [rows, 32] uint32
    sketch: np.ndarray  # [rows, 64] uint8


class BatchLinter:
    """Reads batches; its automata are built once a process."""

    def __init__(
        self, settings: QualitySettings, columns: ColumnNames, leaks: Sequence[LeakIndex] = (), near: bool = True
    ) -> None:
        self.settings, self.columns, self.leaks, self.near = settings, columns, leaks, near
        self.rules = RowRules(settings)
        self.quiet = QuietRows(self.rules)
        self.active = settings.active()

    def lint(self, batch: Batch) -> Linted:
        """Everything that the rows of a batch say."""
        rows, lines = parsed(batch)
        made = _empty(len(rows), lines)
        plain = [None] * len(rows) if self.columns.given() else [_plain(row) for row in rows]
        others = [number for number, row in enumerate(plain) if row is None]
        canonical = dict(zip(others, self._canonical([rows[number] for number in others]), strict=True))
        identified = iter(identify([row for row in canonical.values() if isinstance(row, CanonicalRow)]))
        twins = {number: twin for number, row in enumerate(plain) if row is not None and (twin := _twin(row))}
        joined = list(twins)
        ascii_words, held = self._cleared(made, plain, twins)
        spelt: list[tuple[int, list[str]]] = []  # words of the rows that are not joined
        _plain_shapes(made, plain)
        for number, row in enumerate(plain):
            if row is not None:
                if held[number]:
                    texts = self._row(made, number, (row.prompt, row.completion, None), row.content_id)
                    if not ascii_words[1][number]:
                        spelt.append((number, sorted(texts.words())))
                continue
            other = canonical[number]
            if not isinstance(other, CanonicalRow):
                self._unread(made.found, made, number, other, rows[number])
                continue
            content_id, shown = next(identified).content_id, shown_texts(other)
            _shape(made, number, content_id, other.form, other.conversational, shown[0], shown[1], shown[2])
            texts = self._row(made, number, shown, content_id)
            if other.conversational and (other.tools or _has_calls(other)):
                self._tools(made, number, other, content_id)
            spelt.append((number, sorted(texts.words())))
        _by_appearance(made)
        self._compared(made, ascii_words[0], np.array(joined, np.int64), spelt)
        return made

    def _cleared(
        self, made: Linted, plain: Sequence[PlainRow | None], twins: Mapping[int, tuple[str, str]]
    ) -> tuple[tuple[WordArrays, np.ndarray], np.ndarray]:
        """((words of the joined rows, which rows these are), rows that need a look)."""
        joined = list(twins)
        texts = AsciiTexts([text for twin in twins.values() for text in twin])
        words = words_of(texts.normal_buffer, WORD_BYTES)
        noisy, languages = self.quiet.noisy(texts, words)
        held, within = np.ones(made.rows, bool), np.zeros(made.rows, bool)
        within[joined] = True
        if not self.leaks:
            held[joined] = noisy
        made.languages[joined] = languages
        for position, number in enumerate(joined):
            asked, answered = texts.normal_of(2 * position).strip(), texts.normal_of(2 * position + 1).strip()
            made.prompts[number] = _digest_of(asked) if asked else 0
            completion = plain[number].completion  # pyright: ignore[reportOptionalMemberAccess] - it has a twin
            as_written = "`" in completion or not completion.isascii()
            made.completions[number] = _digest(completion.casefold()) if as_written else _digest_of(answered)
        return (words, within), held

    def _compared(
        self, made: Linted, words: WordArrays, joined: np.ndarray, spelt: Sequence[tuple[int, list[str]]]
    ) -> None:
        """The words of all rows, and what near duplicates are found by."""
        rows, hashes = joined_words(words, np.repeat(joined, 2))
        buffer = buffer_of([" ".join(each) for _, each in spelt]) if spelt else np.zeros(1, np.uint8)
        more = words_of(buffer, NON_SPACE)
        rows = np.concatenate([rows, np.array([number for number, _ in spelt], np.int64)[more.text]])
        hashes = np.concatenate([hashes, more.hashes])
        made.words = np.sort((rows.astype(np.uint64) << np.uint64(32)) | short(hashes)).astype(np.uint32)
        made.ends = np.cumsum(np.bincount(rows, minlength=made.rows))
        if self.near:
            made.bands, made.sketch = band_and_sketch(made.words, made.ends)

    def _canonical(self, rows: Sequence[Any]) -> list[CanonicalRow | str]:
        """Every row in canonical form, or why it has none."""
        readable = [row for row in rows if not isinstance(row, Unread)]
        try:
            read: list[Any] = list(canonical_rows(readable, self.columns)) if readable else []
        except BadInput:
            read = [self._alone(row) for row in readable]
        each = iter(read)
        return [row.fault if isinstance(row, Unread) else next(each) for row in rows]

    def _alone(self, row: Mapping[str, Any]) -> CanonicalRow | str:
        try:
            return canonical_rows([row], self.columns)[0]
        except BadInput as error:
            return _ROW.sub(lambda match: f"message {match[1]}: " if match[1] else "", str(error))

    def _unread(self, found: Found, made: Linted, number: int, fault: Any, row: Any) -> None:
        data = row.data if isinstance(row, Unread) else json.dumps(row, default=str, sort_keys=True).encode()
        made.ids[number] = np.frombuffer(hashlib.sha256(data).digest(), np.uint8)
        rule = "half_character" if "half of a surrogate pair" in fault else "unreadable_row"
        if self.settings.kept([rule], made.ids[number].tobytes().hex()) and rule in self.active:
            found.add(number, rule, "row", 0, 0, fault[:300])

    def _row(self, made: Linted, number: int, shown: tuple[str, str, str | None], content_id: str) -> Texts:
        """What the rules say of one row."""
        prompt, completion, rejected = shown
        sample = {"prompt": prompt, "completion": completion, "rejected": rejected}
        texts = Texts.of(sample)
        judged = self.rules.judged(sample, texts)
        flags = self.settings.kept(judged["flags"], content_id)
        if flags:
            _report(made.found, number, flags, judged["matches"])
        for index in self.leaks:
            leak = index.of(texts)
            if leak is not None and self.settings.kept([index.rule], content_id) and index.rule in self.active:
                made.found.add(number, index.rule, "row", 0, 0, leak)
        answer = completion + "\n" + (rejected or "")
        made.prompts[number] = _digest(texts.prompt.text) if texts.prompt.text.strip() else 0
        made.completions[number] = _digest(answer.casefold())
        made.languages[number] = _LANGUAGE[texts.language]
        if rejected is not None:
            made.lengths[number] = len(texts.completion_words), len(rejected.split())
        made.willing[number] = "harmful_content" in flags and self._is_willing(made, number, judged)
        return texts

    def _tools(self, made: Linted, number: int, row: CanonicalRow, content_id: str) -> None:
        for rule, what in tool_faults(_messages(row), row.tools):
            if self.settings.kept([rule], content_id) and rule in self.active:
                made.found.add(number, rule, "messages", 0, 0, what)

    def _is_willing(self, made: Linted, number: int, judged: Mapping[str, Any]) -> bool:
        from foretune.tasks.quality.harm import is_willing

        return is_willing({**judged, "prompt_digest": made.prompts[number] or None})


def _report(found: Found, number: int, flags: Sequence[str], matches: Sequence[Mapping[str, Any]]) -> None:
    """Every flag with the places that it was found at; one without a place is about the whole completion."""
    placed = set()
    for match in matches:
        rule = match["rule"]
        if rule == "harmful_content" and "harmful_refused" in flags:
            rule = "harmful_refused"
        if rule in flags:
            placed.add(rule)
            found.add(number, rule, match["part"], match["start"], match["end"], match["phrase"])
    for rule in flags:
        if rule not in placed:
            found.add(number, rule, "completion", 0, 0, "")


def _empty(rows: int, lines: Sequence[int]) -> Linted:
    return Linted(
        rows, 0, Found(), np.zeros(rows, bool), np.array(lines, np.int64), np.zeros((rows, ID_BYTES), np.uint8),
        np.zeros(rows, np.uint64), np.zeros(rows, np.uint64), np.zeros(rows, np.uint8), [], np.zeros(rows, np.uint8),
        np.full((rows, 2), -1, np.int32), np.zeros(rows, bool), np.zeros(0, np.uint32), np.zeros(rows, np.int64),
        np.zeros((rows, 0), np.uint32), np.zeros((rows, 0), np.uint8),
    )  # fmt: skip


def _plain(row: Any) -> PlainRow | None:
    """A row of nothing but texts; half a surrogate pair is left to those who say where it stands."""
    if isinstance(row, Unread) or not isinstance(row, dict):
        return None
    if not all(type(value) is str for value in row.values()):
        row = {name: value for name, value in row.items() if value is not None}
        if not all(type(value) is str for value in row.values()):
            return None
    try:
        return plain_row(row)
    except UnicodeEncodeError:
        return None


def _twin(row: PlainRow) -> tuple[str, str] | None:
    prompt, completion = ascii_twin(row.prompt), ascii_twin(row.completion)
    return None if prompt is None or completion is None else (prompt, completion)


def _plain_shapes(made: Linted, plain: Sequence[PlainRow | None]) -> None:
    """What `_shape` says, of all plain rows together."""
    rows = [row for row in plain if row is not None]
    at = np.flatnonzero([row is not None for row in plain])
    made.read[at] = True
    made.characters += sum(len(row.prompt) + len(row.completion) for row in rows)
    made.ids[at] = np.frombuffer(bytes.fromhex("".join([row.content_id for row in rows])), np.uint8).reshape(-1, 32)
    forms = [f"{row.form}, {'messages' if row.conversational else 'text'}" for row in rows]
    made.forms += list(dict.fromkeys(forms))
    made.form[at] = [made.forms.index(form) for form in forms]


def _by_appearance(made: Linted) -> None:
    """The forms numbered as they appear, however rows were read."""
    numbers, first = np.unique(made.form[made.read], return_index=True)
    order = numbers[np.argsort(first)]
    made.form[made.read] = np.argsort(order)[np.searchsorted(numbers, made.form[made.read])] if len(order) else 0
    made.forms = [made.forms[number] for number in order.tolist()]


def _shape(
    made: Linted, number: int, content_id: str, form: str, conversational: bool, prompt: str, completion: str,
    rejected: str | None = None,
) -> None:  # fmt: skip
    made.read[number] = True
    made.characters += len(prompt) + len(completion) + len(rejected or "")
    made.ids[number] = np.frombuffer(bytes.fromhex(content_id), np.uint8)
    form = f"{form}, {'messages' if conversational else 'text'}"
    if form not in made.forms:
        made.forms.append(form)
    made.form[number] = made.forms.index(form)


def _digest(text: str) -> int:
    return _digest_of(" ".join(text.split()).encode())


def _digest_of(words: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little") or 1


def _has_calls(row: CanonicalRow) -> bool:
    return any(m.get("tool_calls") or m.get("role") == "tool" for m in _messages(row))


def _messages(row: CanonicalRow) -> list[Mapping[str, Any]]:
    prompt: Any = row.prompt or []
    completion: Any = row.completion
    return [*prompt, *completion]
