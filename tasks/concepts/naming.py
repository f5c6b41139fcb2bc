"""A name of two to six words for every feature, where it is from, and how well it tells the feature's contexts.

Detection test (Paulo et al., "Automatically interpreting millions of features", 2024) without a model that judges: a
name from evidence is a rule, chosen by how well it tells contexts of half the texts, and tested on the other half; a
name that somebody wrote scores a context by how near its tokens come to the name's words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from foretune.tasks.concepts.detector import Detector
from foretune.tasks.concepts.evidence import Contexts, Evidence
from foretune.tasks.concepts.rules import Rule, suggested

if TYPE_CHECKING:
    from foretune.tasks.inputs.concepts import NamingSettings

UNCLEAR = "unclear"


@dataclass(frozen=True)
class Name:
    """What a feature is called."""

    label: str | None
    source: str | None  # file, endpoint MODEL, evidence, logit lens; None: nothing to go by
    confidence: float | None = None  # AUROC of the detection test
    tested: int = 0  # contexts of either kind that it was tested on
    rule: Rule = field(default=Rule())


def terms_of(label: str) -> tuple[str, ...]:
    """The words of a label that somebody else wrote."""
    return tuple(dict.fromkeys(re.findall(r"\w+", label.lower())))


def written(label: str, source: str, contexts: Contexts, detector: Detector) -> Name:
    """A label that somebody wrote, tested by its words anywhere around a token."""
    rule = Rule(near=terms_of(label))
    return Name(label, source, *detector.confidence(rule, contexts), rule)


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
        return written(given, "file", contexts, detector)
    rules = suggested(evidence, contexts)
    if rules:
        rule = detector.best(rules, contexts)
        confidence, tested = detector.confidence(rule, contexts)
        if confidence is not None:
            label = rule.phrase if confidence >= settings.clear else UNCLEAR
            return Name(label, "evidence", confidence, tested, rule)
    return Name(f"promotes {promoted}", "logit lens") if promoted else Name(UNCLEAR, None)
