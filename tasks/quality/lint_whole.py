"""The batches of a dataset as one: arrays of a value per row, findings as columns, in the file's order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from foretune.tasks.quality.lint_batch import Linted


class Whole:
    """All batches as one: arrays a value per row, findings as columns."""

    def __init__(self, parts: Iterable[Linted]) -> None:
        kept: list[Linted] = []
        forms: list[str] = []
        self.characters, offset = 0, 0
        self.found: dict[str, list[Any]] = {name: [] for name in ("row", "rule", "part", "start", "end", "what")}
        for part in parts:
            self.characters += part.characters
            for name, values in self.found.items():
                own = getattr(part.found, name)
                values += [row + offset for row in own] if name == "row" else own
            for form in part.forms:
                if form not in forms:
                    forms.append(form)
            part.form = np.array([forms.index(form) for form in part.forms] or [0], np.uint8)[part.form]
            kept.append(part)
            offset += part.rows
        self.rows, self.forms = offset, forms
        for name in ("read", "lines", "ids", "prompts", "completions", "languages", "form", "lengths", "willing",
                     "words", "bands", "sketch"):  # fmt: skip
            setattr(self, name, np.concatenate([getattr(part, name) for part in kept]))
            for part in kept:
                delattr(part, name)
        sizes = np.concatenate([np.diff(part.ends, prepend=0) for part in kept])
        self.starts = np.concatenate([[0], np.cumsum(sizes)])

    read: np.ndarray
    lines: np.ndarray
    ids: np.ndarray
    prompts: np.ndarray
    completions: np.ndarray
    languages: np.ndarray
    form: np.ndarray
    lengths: np.ndarray
    willing: np.ndarray
    words: np.ndarray
    bands: np.ndarray
    sketch: np.ndarray

    def add(self, row: int, rule: str, what: str) -> None:
        for name, value in (("row", row), ("rule", rule), ("part", "row"), ("start", 0), ("end", 0), ("what", what)):
            self.found[name].append(value)


class WordSets(Sequence[np.ndarray]):
    def __init__(self, whole: Whole) -> None:
        self.words, self.starts = whole.words, whole.starts

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, position: Any) -> np.ndarray:
        return self.words[self.starts[position] : self.starts[position + 1]]
