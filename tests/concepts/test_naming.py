"""Names against texts whose feature is known, and a test that a wrong name fails."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from foretune.tasks.concepts.detector import Detector
from foretune.tasks.concepts.evidence import Evidence
from foretune.tasks.concepts.naming import UNCLEAR, name_of
from foretune.tasks.inputs.concepts import NamingSettings

TEXT = "please restart the router now or call us about your invoice and we send it today"
WORDS = ["<s>", *TEXT.split()]
NUMBER = {word: number for number, word in enumerate(WORDS)}
ROUTER, RARE = 0, 1


class Tokenizer:
    """One token a word, as the loader's tokenizers are asked."""

    all_special_ids = (0,)

    def decode(self, ids: list[int]) -> str:
        return f" {WORDS[ids[0]]}" if ids[0] else "<s>"

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [NUMBER[word] for word in text.split() if word in NUMBER]


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    """60 texts of random words; feature 0 fires on `router`, feature 1 twice on `today`."""
    rng, lines = np.random.default_rng(0), []
    for text in range(60):
        words = rng.choice(np.setdiff1d(np.arange(1, len(WORDS)), [NUMBER["router"]]), 30)
        if text % 3 == 0:
            words[rng.integers(10, 20)] = NUMBER["router"]
        lines += [(text, position, number) for position, number in enumerate([0, *words.tolist()])]
    columns: dict[str, Any] = dict(zip(("text", "position", "id"), zip(*lines, strict=True), strict=True))
    columns["label"] = [position > 4 for _, position, _ in lines]
    router = [n for n, line in enumerate(lines) if line[2] == NUMBER["router"]]
    today = [n for n, line in enumerate(lines) if line[2] == NUMBER["today"]][:2]
    fired = {
        "token": [*router, *today],
        "feature": [ROUTER] * len(router) + [RARE] * 2,
        "activation": [1.0 + n / 100 for n in range(len(router) + 2)],
    }
    return Evidence(pa.table(columns), pa.table(fired), Tokenizer())


@pytest.fixture(scope="module")
def detector(evidence: Evidence) -> Detector:
    return Detector(evidence, torch.randn(len(WORDS), 64, generator=torch.Generator().manual_seed(0)))


def test_a_feature_is_named_after_the_word_it_fires_on_and_the_name_finds_it_again(evidence, detector):
    name = name_of(ROUTER, None, None, evidence, detector, NamingSettings())
    assert name.label == "the word router" and name.source == "evidence"
    assert name.confidence is not None and name.confidence > 0.95 and name.tested >= 4


def test_a_label_of_the_file_is_kept_and_tested_too(evidence, detector):
    right = name_of(ROUTER, "the customer's router", "x", evidence, detector, NamingSettings())
    wrong = name_of(ROUTER, "invoice", None, evidence, detector, NamingSettings())
    assert (right.label, right.source, wrong.label) == ("the customer's router", "file", "invoice")
    assert right.confidence > 0.85 and wrong.confidence < 0.7


def test_a_name_that_fails_its_test_is_unclear_and_thin_evidence_too(evidence, detector):
    strict = NamingSettings(clear=1.0)
    shuffled = Detector(evidence, torch.randn(len(WORDS), 64))
    shuffled._part = lambda name, words, tokens: np.zeros(len(tokens))  # every word is every other
    failed = name_of(ROUTER, None, "cable", evidence, shuffled, strict)
    assert failed.label == UNCLEAR and failed.confidence == pytest.approx(0.5)
    thin = name_of(RARE, None, None, evidence, detector, NamingSettings())
    assert (thin.label, thin.source, thin.confidence) == (UNCLEAR, None, None)
    assert name_of(RARE, None, "cable, fibre", evidence, detector, NamingSettings()).label == "promotes cable, fibre"


def test_contexts_that_test_a_name_were_not_those_that_made_it(evidence):
    contexts = evidence.contexts(ROUTER, 20)
    assert set(evidence.text[contexts.shown] % 2) == {0} and set(evidence.text[contexts.tested] % 2) == {1}
    fired = set(evidence.firings(ROUTER)[0].tolist())
    assert all(fired.isdisjoint(range(*evidence.window(token))) for token in contexts.silent)
