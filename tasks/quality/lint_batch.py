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
from foretune.tasks.quality.diversity import band_keys, signatures, word_hashes
from foretune.tasks.quality.languages import LANGUAGES
from foretune.tasks.quality.rows import RowRules, Texts
from foretune.tasks.quality.tool_calls import tool_faults
from foretune.tasks.samples.forms import CanonicalRow, ColumnNames, canonical_rows, shown_texts
from foretune.tasks.samples.ids import identify

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
    words: np.ndarray  # uint32 hashes of the different words, row after row
    ends: np.ndarray  # int64 [rows]: where each row's words end
    bands: np.ndarray  # [rows, 32] uint64


class BatchLinter:
    """Reads batches; its automata are built once a process."""

    def __init__(
        self, settings: QualitySettings, columns: ColumnNames, leaks: Sequence[LeakIndex] = (), near: bool = True
    ) -> None:
        self.settings, self.columns, self.leaks, self.near = settings, columns, leaks, near
        self.rules = RowRules(settings)
        self.active = settings.active()

    def lint(self, batch: Batch) -> Linted:
        """Everything that the rows of a batch say."""
        rows, lines = parsed(batch)
        canonical = self._canonical(rows)
        found = Found()
        made = _empty(len(rows), lines)
        readable = [row for row in canonical if isinstance(row, CanonicalRow)]
        identified = iter(identify(readable))
        word_sets: list[list[str]] = []
        for number, row in enumerate(canonical):
            if not isinstance(row, CanonicalRow):
                self._unread(found, made, number, row, rows[number])
                word_sets.append([])
                continue
            content_id = next(identified).content_id
            word_sets.append(self._row(found, made, number, row, content_id, rows[number]))
        hashed = word_hashes(word_sets)
        made.words = _flat(hashed)
        made.ends = np.cumsum([len(words) for words in hashed], dtype=np.int64)
        if self.near:
            made.bands = band_keys(np.array(signatures(hashed), dtype=np.uint32).reshape(len(rows), 128))
        made.found = found
        return made

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

    def _row(self, found: Found, made: Linted, number: int, row: CanonicalRow, content_id: str, raw: Any) -> list[str]:
        prompt, completion, rejected = shown_texts(row)
        sample = {"prompt": prompt, "completion": completion, "rejected": rejected}
        texts = Texts.of(sample)
        judged = self.rules.judged(sample, texts)
        flags = self.settings.kept(judged["flags"], content_id)
        if flags:
            _report(found, number, flags, judged["matches"])
        if row.conversational and (row.tools or _has_calls(row)):
            for rule, what in tool_faults(_messages(row), row.tools):
                if self.settings.kept([rule], content_id) and rule in self.active:
                    found.add(number, rule, "messages", 0, 0, what)
        words = texts.words()
        for index in self.leaks:
            leak = index.of(row, texts)
            if leak is not None and self.settings.kept([index.rule], content_id) and index.rule in self.active:
                found.add(number, index.rule, "row", 0, 0, leak)
        answer = completion + "\n" + (rejected or "")
        made.read[number] = True
        made.characters += len(prompt) + len(answer) - 1
        made.ids[number] = np.frombuffer(bytes.fromhex(content_id), np.uint8)
        made.prompts[number] = _digest(texts.prompt.text) if texts.prompt.text.strip() else 0
        made.completions[number] = _digest(answer.casefold())
        made.languages[number] = _LANGUAGE[texts.language]
        form = f"{row.form}, {'messages' if row.conversational else 'text'}"
        if form not in made.forms:
            made.forms.append(form)
        made.form[number] = made.forms.index(form)
        if rejected is not None:
            made.lengths[number] = len(texts.completion_words), len(rejected.split())
        made.willing[number] = "harmful_content" in flags and self._is_willing(made, number, judged)
        return list(words)

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
        np.zeros((rows, 0), np.uint64),
    )  # fmt: skip


def _flat(hashed: Sequence[Sequence[int]]) -> np.ndarray:
    """32 bits of every hash, row after row, sorted within a row."""
    total = sum(map(len, hashed))
    flat = np.fromiter((each for row in hashed for each in row), np.uint64, total)
    return (flat >> np.uint64(32)).astype(np.uint32)


def _digest(text: str) -> int:
    digest = hashlib.blake2b(" ".join(text.split()).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


def _has_calls(row: CanonicalRow) -> bool:
    return any(m.get("tool_calls") or m.get("role") == "tool" for m in _messages(row))


def _messages(row: CanonicalRow) -> list[Mapping[str, Any]]:
    prompt: Any = row.prompt or []
    completion: Any = row.completion
    return [*prompt, *completion]
