"""A name of two to six words for every feature, where it is from, and how well it tells the feature's contexts.

Detection test (Paulo et al., "Automatically interpreting millions of features", 2024) without a model that judges: a
name from evidence is a rule, chosen by how well it tells contexts of half the texts, and tested on the other half; a
name that somebody wrote scores a context by how near its tokens come to the name's words.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from foretune.tasks.concepts.detector import Detector
from foretune.tasks.concepts.evidence import Contexts, Evidence
from foretune.tasks.concepts.label_endpoint import prompt_of, written_labels
from foretune.tasks.concepts.rules import Rule, suggested

if TYPE_CHECKING:
    from foretune.tasks.inputs.concepts import NamingSettings

UNCLEAR = "unclear"
logger = logging.getLogger("foretune")


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


def asked_names(
    named: list[Name],
    moved: Sequence[Mapping[str, Any]],
    promoted: Mapping[int, str],
    evidence: Evidence,
    detector: Detector,
    settings: NamingSettings,
) -> dict[str, Any]:
    """Names from the endpoint in the place of those from evidence, for the features that moved most; of the two the
    test keeps the endpoint's unless it is below what is clear and the other is not. Returns what was asked and why it
    ended early."""
    endpoint = settings.endpoint
    assert endpoint is not None
    sure = [row for row in moved if row["beyond_noise"] and named[row["feature"]].source != "file"]
    sure = sorted(sure, key=lambda row: (-abs(row["change"]), row["feature"]))[: endpoint.features]
    contexts = {row["feature"]: evidence.contexts(row["feature"], settings.contexts) for row in sure}
    prompts = [(n, prompt_of(evidence, each, promoted.get(n))) for n, each in contexts.items() if len(each.shown)]
    found = written_labels(endpoint, prompts)
    for feature, label in found.labels.items():
        name = written(label, f"endpoint {endpoint.model}", contexts[feature], detector)
        failed, kept = name.confidence is not None and name.confidence < settings.clear, named[feature].confidence
        if not (failed and kept is not None and kept >= settings.clear):
            named[feature] = name
    if found.fault is not None:
        logger.warning(
            "features.naming.endpoint: %s; names from evidence stay. Raise features.naming.endpoint.again to ask again",
            found.fault,
        )
    return {"model": endpoint.model, "asked": found.asked, "labels": len(found.labels), "fault": found.fault}
