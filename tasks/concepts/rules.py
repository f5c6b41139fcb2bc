"""A rule is what a name says in a form that can be tested: a token of these words, after those, near others, or of a
kind; and the rules that the contexts of a feature suggest."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from foretune.tasks.concepts.evidence import LINE_BREAK, NUMBER, SPACE, Contexts, Evidence

FEWEST = 4  # contexts on either side, below which evidence is thin
HERE, BESIDE, NEAR = 4, 2, 2  # words of a name at most
MOST_TERMS, MOST_WORDS, MOST_PARTS = 5, 6, 2
SHARE_HERE = 0.07  # of the activation that a word must carry to be named
SHARE_BESIDE = 0.2  # of the contexts by which a word is before or after the feature more often than any token
SHARE_NEAR = 0.25  # the same of a word anywhere around it
SHARE_KIND = 0.3  # the same of a kind of token
COMMON = 0.2  # of all contexts: a word of more of them says nothing beside a feature
NAMED = {LINE_BREAK, SPACE, NUMBER}


@dataclass(frozen=True)
class Rule:
    """What is true of a token that a feature fires on; any of the words of a part will do, but all parts hold."""

    here: tuple[str, ...] = ()
    after: tuple[str, ...] = ()  # the word before it
    before: tuple[str, ...] = ()  # the word behind it
    near: tuple[str, ...] = ()  # all of these, anywhere around it
    kind: str | None = None  # a key of Evidence.kinds

    @property
    def parts(self) -> list[tuple[str, tuple[str, ...]]]:
        """(name, words) of those that say something."""
        named = [("here", self.here), ("after", self.after), ("before", self.before), ("near", self.near)]
        return [(name, words) for name, words in [*named, ("kind", (self.kind,) if self.kind else ())] if words]

    @property
    def words(self) -> int:
        return sum(len(words) for _, words in self.parts)

    @property
    def phrase(self) -> str:
        """The name."""
        if self.here:
            said = _alone(self.here[0]) if len(self.parts) == len(self.here) == 1 else _listed(self.here)
        else:
            said = self.kind if self.kind and self.kind in Evidence.NOUNS else ""
        place = self.kind if self.kind not in Evidence.NOUNS else None
        told = [(name, _listed(words)) for name, words in self.parts if name in ("after", "before", "near")]
        return " ".join(filter(None, [said, *(f"{name} {words}" for name, words in told), place]))


def _alone(word: str) -> str:
    kind = "a" if word in NAMED else "the word" if word[:1].isalnum() else "the mark"
    return f"{kind} {_shown(word)}"


def _listed(words: Iterable[str]) -> str:
    return ", ".join(map(_shown, words))


def _shown(word: str) -> str:
    return word if word[:1].isalnum() or word in NAMED else f"‘{word}’"


def suggested(evidence: Evidence, contexts: Contexts) -> list[Rule]:
    """The rules that the contexts shown suggest; none where these are too few."""
    shown = contexts.shown
    if len(shown) < FEWEST:
        return []
    here = _frequent((evidence.words[token] for token in shown), contexts.weights, {}, SHARE_HERE)[:HERE]
    beside = {
        name: _frequent((evidence.beside(token, step) for token in shown), [1] * len(shown), common, SHARE_BESIDE)
        for name, step, common in (("after", -1, evidence.common_before), ("before", 1, evidence.common_behind))
    }
    near = _near(evidence, contexts, here)
    kinds = [name for name, of in evidence.kinds.items() if of[shown].mean() - evidence.kind_share[name] >= SHARE_KIND]
    found = itertools.product(
        _beginnings(here), _beginnings(beside["after"][:BESIDE]), _beginnings(beside["before"][:BESIDE]),
        _beginnings(near), [None, *kinds],
    )  # fmt: skip
    return [rule for each in found if _says_enough(rule := Rule(*each))]


def _says_enough(rule: Rule) -> bool:
    short = 0 < rule.words <= MOST_TERMS and len(rule.parts) <= MOST_PARTS and len(rule.phrase.split()) <= MOST_WORDS
    return short and not (rule.here and rule.kind in Evidence.NOUNS)


def _beginnings(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    return (tuple(words[:count]) for count in range(len(words) + 1))


def _frequent(
    words: Iterable[str | None], weights: Iterable[float], common: Mapping[str, float], least: float
) -> list[str]:
    """Words by the share of the weight that they have beyond what any token has, down to `least`."""
    total, sums = 0.0, defaultdict[str, float](float)
    for word, weight in zip(words, weights, strict=True):
        total += float(weight)
        if word is not None:
            sums[word] += float(weight)
    more = {word: each / total - common.get(word, 0.0) for word, each in sums.items()}
    return sorted((word for word, share in more.items() if share >= least), key=lambda word: (-more[word], word))


def _near(evidence: Evidence, contexts: Contexts, here: list[str]) -> list[str]:
    """Words that stand beside the feature far more often than beside any token."""
    beside: Counter[str] = Counter()
    for token in contexts.shown:
        places = [at for at in range(*evidence.window(token)) if not evidence.is_marker(at)]
        beside.update({evidence.words[at] for at in places})
    more = {
        word: times / len(contexts.shown) - evidence.common.get(word, 0.0)
        for word, times in beside.items()
        if times >= 2 and word not in here and word[:1].isalnum() and word not in NAMED
    }
    often = [w for w, share in more.items() if share >= SHARE_NEAR and evidence.common.get(w, 0.0) <= COMMON]
    return sorted(often, key=lambda word: (-more[word], word))[:NEAR]
