"""Rules that look at one text: patterns behind the signs that they need, phrases, damage of encodings, repetition.

Most texts hold none of the signs that a pattern needs, so one pass of an Aho-Corasick automaton over a text stands for
all patterns. Patterns of users run in RE2, whose time is linear whatever the pattern is.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foretune.tasks.quality.checksums import CHECKS
from foretune.tasks.quality.encoding import damages, is_untrimmed
from foretune.tasks.quality.phrases import Match
from foretune.tasks.quality.rules import Rule

MOST_SPANS = 20  # of one rule in one part: a text of nothing but addresses needs no thousand findings
_DIGIT = re.compile(r"\d")
_DIGITS = re.compile(r"\d(?:[ .()/-]{0,2}\d){6}|[A-Z]{2}\d\d ?[A-Z0-9]{4}")
_CODE = re.compile(r"```.*?(?:```|$)|`[^`\n]*`", re.DOTALL)
_TAGS = 3
_SENTENCE = re.compile(r"[^.!?\n]+[.!?\n]*")


@dataclass(frozen=True)
class Finding:
    """A rule found in one part of a row."""

    rule: str
    part: str
    start: int  # in characters of the part
    end: int
    what: str  # which phrase or pattern of the rule; never the text itself, which may be a secret


@dataclass(frozen=True)
class _Pattern:
    rule: str
    what: str
    parts: tuple[str, ...]
    spans: Callable[[str], Iterator[tuple[int, int]]]


class TextRules:
    """The rules that need one text alone, with their automata built once."""

    def __init__(self, rules: Sequence[Rule], own: Sequence[Rule] = ()) -> None:
        from ahocorasick_rs import AhoCorasick

        self._on = {rule.id for rule in (*rules, *own)}
        needed: dict[str, list[_Pattern]] = {}
        self.on_digits: list[_Pattern] = []
        for rule in rules:
            patterns = [
                _Pattern(rule.id, what, rule.parts, _matcher(p, rule.check)) for what, p in rule.patterns.items()
            ]
            if rule.needs == "digits":
                self.on_digits += patterns
            else:
                for sign in rule.needs:
                    needed.setdefault(sign, []).extend(patterns)
        self.always = [_Pattern(r.id, what, r.parts, _linear(p, r.id)) for r in own for what, p in r.patterns.items()]
        self._needed = needed
        self._behind = list(needed.values())
        self._signs: Any = AhoCorasick(list(needed)) if needed else None
        worded = [(rule, phrase) for rule in (*rules, *own) for phrase in rule.phrases]
        self.phrases: list[tuple[str, str, tuple[str, ...]]] = [(r.id, phrase, r.parts) for r, phrase in worded]

    def find(self, part: str, text: str, phrases: Sequence[Match] = (), repetitive: bool = True) -> list[Finding]:
        """What one part of a row shows, in the order of the rules.

        `phrases` are the places of `self.phrases`, found by whoever looks for more phrases than these; what is not
        `repetitive` says nothing four times.
        """
        found = [
            Finding(pattern.rule, part, start, end, pattern.what)
            for pattern in self._candidates(text)
            if part in pattern.parts
            for start, end in pattern.spans(text)
        ]
        for match in phrases:
            rule, phrase, parts = self.phrases[match.phrase]
            if part in parts:
                found.append(Finding(rule, part, match.start, match.end, phrase))
        found += [Finding(rule, part, start, end, rule) for rule, start, end in damages(text) if rule in self._on]
        if part == "completion":
            found += [Finding(rule, part, *span, rule) for rule, span in _whole(text, repetitive) if rule in self._on]
        return found

    def _candidates(self, text: str) -> list[_Pattern]:
        """Patterns whose signs stand in the text, each once."""
        chosen = list(self.always)
        if self._signs is not None:
            hits = {sign for sign, _, _ in self._signs.find_matches_as_indexes(text, overlapping=True)}
            for sign in sorted(hits):
                chosen += [pattern for pattern in self._behind[sign] if pattern not in chosen]
        if self.on_digits and holds_digits(text):
            chosen += self.on_digits
        return chosen

    def signs(self) -> dict[str, set[str]]:
        """Every sign that a pattern needs -> the parts that such patterns look at."""
        return {sign: {part for p in behind for part in p.parts} for sign, behind in self._needed.items()}

    def own_found(self, part: str, text: str) -> bool:
        """Whether a pattern that needs no sign is there."""
        return any(part in each.parts and next(each.spans(text), None) is not None for each in self.always)


def holds_digits(text: str) -> bool:
    """Whether a text has as many digits in a row as the shortest number that is looked for."""
    return _DIGIT.search(text) is not None and _DIGITS.search(text) is not None


def _matcher(pattern: str, check: str | None) -> Callable[[str], Iterator[tuple[int, int]]]:
    compiled = re.compile(pattern)
    passes = CHECKS.get(check or "")
    if check == "markup":
        return functools.partial(_markup, compiled)

    def spans(text: str) -> Iterator[tuple[int, int]]:
        left = MOST_SPANS
        for match in compiled.finditer(text):
            if passes is None or passes(match.group()):
                yield match.span()
                left -= 1
                if not left:
                    return

    return spans


def _markup(tag: re.Pattern[str], text: str) -> Iterator[tuple[int, int]]:
    """The first tag, where there are three outside of code."""
    code = [match.span() for match in _CODE.finditer(text)] if "`" in text else []
    tags = [m.span() for m in tag.finditer(text) if not any(a <= m.start() < b for a, b in code)]
    if len(tags) >= _TAGS:
        yield tags[0]


def _linear(pattern: str, rule: str) -> Callable[[str], Iterator[tuple[int, int]]]:
    """A user's pattern. BadInput for one that RE2 does not take."""
    import re2  # pyright: ignore[reportMissingImports] - of its compiled part

    from foretune.storage.errors import BadInput

    try:
        options = re2.Options()
        options.log_errors = False
        options.max_mem = 8 << 20
        compiled = re2.compile(pattern, options)
    except re2.error as error:
        said = error.args[0].decode() if isinstance(error.args[0], bytes) else error.args[0]
        raise BadInput(f"rule {rule}: pattern {pattern!r} is none that RE2 takes ({said}); mend it") from None

    def spans(text: str) -> Iterator[tuple[int, int]]:
        clean = text.encode("utf-8", "replace").decode()
        for number, match in enumerate(compiled.finditer(clean)):
            if number == MOST_SPANS:
                return
            yield match.span()

    return spans


def _whole(text: str, repetitive: bool) -> Iterator[tuple[str, tuple[int, int]]]:
    """What a completion shows as a whole."""
    if is_untrimmed(text):
        yield (
            "untrimmed",
            (len(text.rstrip()), len(text)) if text != text.rstrip() else (0, len(text) - len(text.lstrip())),
        )
    if text.count("```") % 2:
        start = text.rfind("```")
        yield "open_code_fence", (start, len(text))
    if repetitive and (span := repeated(text)) is not None:
        yield "repeated_text", span


def repeated(text: str) -> tuple[int, int] | None:
    """The first place of a line or sentence that makes up half of the text and comes four times."""
    if len(text) < 40:
        return None
    pieces = Counter(piece for each in _SENTENCE.findall(text) if len(piece := each.strip()) > 7)
    if not pieces:
        return None
    piece, count = pieces.most_common(1)[0]
    if count < 4 or 2 * count * len(piece) < len(text):
        return None
    start = text.find(piece)
    return start, start + len(piece)


def matches_of(findings: Sequence[Finding], severities: Mapping[str, str]) -> list[dict[str, Any]]:
    """Findings as the pass stores them beside its keywords."""
    return [
        {
            "rule": f.rule,
            "phrase": f.what,
            "severity": severities[f.rule],
            "part": f.part,
            "start": f.start,
            "end": f.end,
        }
        for f in findings
    ]
