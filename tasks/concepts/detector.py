"""How well a rule tells the contexts of a feature from others, without a model that judges.

Words are matched by the base model's own input embeddings, centred, so that a word that means nearly the same counts
for nearly as much. A rule's parts are added, each in standard deviations of what it gives on any token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from foretune.tasks.concepts.evidence import LEFT, LINE_BREAK, NUMBER, RIGHT, SPACE, Contexts, Evidence
from foretune.tasks.concepts.rules import FEWEST, Rule

if TYPE_CHECKING:
    from torch import Tensor

MOST_WORDS = 4096
"""Words whose similarities to every token are kept."""
PER_WORD, PER_PART = 0.004, 0.01
"""AUROC that one more word, and one more part, must bring: a shorter name is a better one."""


class Detector:
    """Scores tokens by rules."""

    def __init__(self, evidence: Evidence, embeddings: Tensor) -> None:
        import torch

        self.evidence = evidence
        table = embeddings.detach().float()
        self._table = torch.nn.functional.normalize(table - table.mean(0), dim=1)
        known, self._known = np.unique(evidence.ids, return_inverse=True)  # each id's place among those of the texts
        self._rows = self._table[torch.as_tensor(known)]
        self._similar: dict[str, Any] = {}
        self._spread: dict[tuple[str, tuple[str, ...]], tuple[float, float]] = {}

    def confidence(self, rule: Rule, contexts: Contexts) -> tuple[float | None, int]:
        """AUROC of tested contexts against silent ones, and how many of the fewer there are; None below `FEWEST`."""
        tested = min(len(contexts.tested), len(contexts.silent))
        if tested < FEWEST or not rule.parts:
            return None, tested
        return self.separation(rule, contexts.tested, contexts.silent), tested

    def best(self, rules: list[Rule], contexts: Contexts) -> Rule:
        """The rule that tells the contexts it was made from, and the feature's others in the same texts, best from
        those around which it does not fire."""
        if len(contexts.unlike) < FEWEST:
            return rules[0]

        groups = (contexts.shown, contexts.further, contexts.unlike)
        parts = {part for rule in rules for part in rule.parts}  # most are in several rules
        scored = {part: [self._usual(part, tokens) for tokens in groups] for part in parts}

        def worth(rule: Rule) -> float:
            shown, further, unlike = (
                sum((scored[part][group] for part in rule.parts), np.zeros(len(tokens)))
                for group, tokens in enumerate(groups)
            )
            told = [_told_apart(fired, unlike) for fired in (shown, further)]
            return sum(told) / 2 - PER_WORD * rule.words - PER_PART * len(rule.parts)

        return max(rules, key=worth)

    def separation(self, rule: Rule, fired: Any, silent: Any) -> float:
        """AUROC of a rule between two lists of tokens."""
        return _told_apart(self._scores(rule, fired), self._scores(rule, silent))

    def _scores(self, rule: Rule, tokens: Any) -> Any:
        return sum((self._usual(part, tokens) for part in rule.parts), np.zeros(len(tokens)))

    def _usual(self, part: tuple[str, tuple[str, ...]], tokens: Any) -> Any:
        """Scores by a part of a rule, in deviations from what it gives elsewhere."""
        if part not in self._spread:
            usual = self._part(*part, self.evidence.sampled)
            self._spread[part] = float(usual.mean()), float(usual.std())
        mean, deviation = self._spread[part]
        return (self._part(*part, tokens) - mean) / max(deviation, 1e-6)

    def _part(self, name: str, words: tuple[str, ...], tokens: Any) -> Any:
        if name == "kind":
            return self.evidence.kinds[words[0]][tokens].astype(float)
        if name == "near":
            return self._near(words, tokens)
        step = {"here": 0, "after": -1, "before": 1}[name]
        places = np.clip(tokens + step, self.evidence.first(tokens), self.evidence.last(tokens))
        # A word that is this one counts for more than any that is like it.
        said = [self._like(word)[self._known[places]] + (self.evidence.words[places] == word) for word in words]
        return np.max(said, axis=0)

    def _near(self, words: tuple[str, ...], tokens: Any) -> Any:
        """Mean over the words, weighted by rarity, of the similarity of the nearest token around."""
        first, last = self.evidence.windows(tokens)
        places = np.minimum(first[:, None] + np.arange(LEFT + RIGHT + 1), last[:, None] - 1)
        rarity = [max(self.evidence.rarity(word), 0.1) for word in words]
        nearest = [self._like(word)[self._known[places]].max(1) for word in words]
        return np.average(nearest, axis=0, weights=rarity)

    def _like(self, word: str) -> Any:
        """[ids of the texts]: the cosine of each with a word as it stands inside a text, by its nearest token."""
        if word not in self._similar:
            if len(self._similar) >= MOST_WORDS:
                self._similar.clear()
            text = {LINE_BREAK: "\n", SPACE: " ", NUMBER: "1"}.get(word, f" {word}")
            ids = self.evidence.tokenizer.encode(text, add_special_tokens=False)
            pieces = self._table[[number for number in ids if number < len(self._table)] or [0]]
            self._similar[word] = (self._rows @ pieces.T).amax(1).cpu().numpy()
        return self._similar[word]


def _told_apart(fired: Any, silent: Any) -> float:
    import torch

    from foretune.tasks.numerics.detection import auroc

    return auroc(torch.as_tensor(fired), torch.as_tensor(silent))
