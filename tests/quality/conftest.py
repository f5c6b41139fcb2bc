"""Samples made by hand: the quality pass needs no tokenizer."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import hypothesis
import pyarrow as pa
import pytest

from foretune.tasks.samples.table import samples_schema

# A busy machine is no failure.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

Samples = Callable[..., pa.Table]


@pytest.fixture(scope="session")
def samples() -> Samples:
    """`samples((prompt, completion, changes) ...)`: a table sorted by id, a token a word, prompts unlabelled."""

    def table(*rows: tuple[str, str] | tuple[str, str, dict[str, Any]]) -> pa.Table:
        seen: Counter[tuple[str, str]] = Counter()
        records = []
        for number, (prompt, completion, *changes) in enumerate(rows):
            asked, answered = len(prompt.split()), len(completion.split())
            occurrence = seen[prompt, completion]
            seen[prompt, completion] += 1
            record = {
                "sample_id": hashlib.sha256(f"{prompt}|{completion}|{occurrence}".encode()).hexdigest(),
                "row": number,
                "occurrence": occurrence,
                "form": "prompt_completion",
                "prompt": prompt,
                "completion": completion,
                "input_ids": list(range(asked + answered)),
                "loss_mask": [False] * asked + [True] * answered,
                "full_tokens": asked + answered,
            }
            records.append(record | (changes[0] if changes else {}))
        records.sort(key=lambda record: record["sample_id"])
        return pa.Table.from_pylist(records, schema=samples_schema())

    return table
