"""A name of two to six words for every feature, where it is from, and how well it tells the feature's contexts.

Detection test (Paulo et al., "Automatically interpreting millions of features", 2024) without a model that judges: a
context scores by how near its tokens come to the name's, in the base model's own input embeddings.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from foretune.tasks.concepts.evidence import LEFT, LINE_BREAK, NUMBER, RIGHT, SPACE, Contexts, Evidence

if TYPE_CHECKING:
    from torch import Tensor

    from foretune.tasks.inputs.concepts import NamingSettings

FEWEST = 4  # contexts on either side, below which evidence is thin
FIRED, NEAR = 4, 2  # words of a name at most
SHARE_FIRED = 0.07  # of the activation that a word must carry to be named
SHARE_NEAR = 0.25  # of the contexts by which a word stands beside the feature more often than beside any token
COMMON = 0.2  # of all contexts: a word of more of them says nothing beside a feature
UNCLEAR = "unclear"
NAMED = {LINE_BREAK, SPACE, NUMBER}


@dataclass(frozen=True)
class Name:
    """What a feature is called."""

    label: str | None
    source: str | None  # file, evidence, logit lens; None: nothing to go by
    confidence: float | None = None  # AUROC of the detection test
    tested: int = 0  # contexts of either kind that it was tested on
    terms: tuple[str, ...] = field(default=())


def candidates(evidence: Evidence, contexts: Contexts) -> list[tuple[str, tuple[str, ...]]]:
    """(name, its words) that the contexts shown suggest, the shorter first; none where these are too few."""
    if len(contexts.shown) < FEWEST:
        return []
    weight: dict[str, float] = defaultdict(float)
    for token, activation in zip(contexts.shown, contexts.weights, strict=True):
        weight[evidence.words[token]] += float(activation)
    ranked = sorted(weight, key=lambda word: (-weight[word], word))
    fired = [word for word in ranked if weight[word] >= SHARE_FIRED * sum(weight.values())][:FIRED]
    near = _near(evidence, contexts, fired)
    parts = [(fired[:count], near[:beside]) for count in range(len(fired) + 1) for beside in range(len(near) + 1)]
    parts = sorted((each for each in parts if each[0] or each[1]), key=lambda each: len(each[0]) + len(each[1]))
    return [(_phrase(*each), (*each[0], *each[1])) for each in parts]


def _near(evidence: Evidence, contexts: Contexts, fired: list[str]) -> list[str]:
    """Words that stand beside the feature far more often than beside any token."""
    beside: Counter[str] = Counter()
    for token in contexts.shown:
        places = [at for at in range(*evidence.window(token)) if not evidence.is_marker(at)]
        beside.update({evidence.words[at] for at in places})
    more = {
        word: times / len(contexts.shown) - evidence.common.get(word, 0.0)
        for word, times in beside.items()
        if times >= 2 and word not in fired and word[:1].isalnum() and word not in NAMED
    }
    often = [w for w, share in more.items() if share >= SHARE_NEAR and evidence.common.get(w, 0.0) <= COMMON]
    return sorted(often, key=lambda word: (-more[word], word))[:NEAR]


def _phrase(fired: list[str], near: list[str]) -> str:
    said = [word if word[:1].isalnum() or word in NAMED else f"‘{word}’" for word in fired]
    if not said:
        return f"near {', '.join(near)}"
    if len(said) == 1 and not near:
        kind = "a" if fired[0] in NAMED else "the word" if fired[0][:1].isalnum() else "the mark"
        return f"{kind} {said[0]}"
    return ", ".join(said) + (f" near {', '.join(near)}" if near else "")


def terms_of(label: str) -> tuple[str, ...]:
    """The words of a label that somebody else wrote."""
    return tuple(dict.fromkeys(re.findall(r"\w+", label.lower())))


class Detector:
    """Scores contexts by the base model's input embeddings, centred: each word of a name by its nearest token."""

    def __init__(self, evidence: Evidence, embeddings: Tensor) -> None:
        import torch

        self.evidence = evidence
        table = embeddings.detach().float()
        self._table = torch.nn.functional.normalize(table - table.mean(0), dim=1)
        self._pieces: dict[str, Tensor] = {}

    def confidence(self, terms: tuple[str, ...], contexts: Contexts) -> tuple[float | None, int]:
        """AUROC of tested contexts against silent ones, and how many of the fewer there are; None below `FEWEST`."""
        tested = min(len(contexts.tested), len(contexts.silent))
        if tested < FEWEST or not terms:
            return None, tested
        return self.separation(terms, contexts.tested, contexts.silent), tested

    def best(self, names: list[tuple[str, tuple[str, ...]]], contexts: Contexts) -> tuple[str, tuple[str, ...]]:
        """The name that tells the contexts shown best from others of their texts; of equals the shortest."""
        if len(contexts.unlike) < FEWEST:
            return names[-1]
        return max(names, key=lambda name: round(self.separation(name[1], contexts.shown, contexts.unlike), 2))

    def separation(self, terms: tuple[str, ...], fired: Any, silent: Any) -> float:
        """AUROC of these words between two lists of tokens."""
        from foretune.tasks.numerics.detection import auroc

        return auroc(self._scores(terms, fired), self._scores(terms, silent))

    def _scores(self, terms: tuple[str, ...], tokens: Any) -> Tensor:
        """Per token the mean over the words, weighted by rarity, of the cosine with the nearest token around it."""
        import torch

        first, last = self.evidence.windows(tokens)
        places = first[:, None] + np.arange(LEFT + RIGHT + 1)
        around = self._table[torch.as_tensor(self.evidence.ids[np.minimum(places, last[:, None] - 1)])]
        total, weight = torch.zeros(len(tokens)), 0.0
        for word in terms:
            rarity = max(self.evidence.rarity(word), 0.1)
            total, weight = total + rarity * (around @ self._of(word).T).amax(1).mean(1), weight + rarity
        return total / weight

    def _of(self, word: str) -> Tensor:
        """[pieces, d] of a word as it stands inside a text."""
        if word not in self._pieces:
            text = {LINE_BREAK: "\n", SPACE: " ", NUMBER: "1"}.get(word, f" {word}")
            ids = self.evidence.tokenizer.encode(text, add_special_tokens=False)
            known = [number for number in ids if number < len(self._table)]
            self._pieces[word] = self._table[known or [0]]
        return self._pieces[word]


def name_of(
    feature: int,
    given: str | None,
    promoted: str | None,
    evidence: Evidence,
    detector: Detector,
    settings: NamingSettings,
) -> Name:
    """The file's label where there is one; else what its contexts show, if a test bears it out; else the lens."""
    contexts = evidence.contexts(feature, settings.contexts)
    if given is not None:
        terms = terms_of(given)
        return Name(given, "file", *detector.confidence(terms, contexts), terms)
    suggested = candidates(evidence, contexts)
    if suggested:
        found = detector.best(suggested, contexts)
        confidence, tested = detector.confidence(found[1], contexts)
        if confidence is not None:
            label = found[0] if confidence >= settings.clear else UNCLEAR
            return Name(label, "evidence", confidence, tested, found[1])
    return Name(f"promotes {promoted}", "logit lens") if promoted else Name(UNCLEAR, None)
