"""Pass 0, row by row: flags that a row earns by itself, and what is needed to compare it with others."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foretune.tasks.quality.diversity import all_words, word_count
from foretune.tasks.quality.languages import language_of
from foretune.tasks.quality.patterns import Finding, TextRules, matches_of
from foretune.tasks.quality.phrases import Match, NormalText, PhraseFinder, normal_text
from foretune.tasks.quality.rules import REFUSALS

if TYPE_CHECKING:
    import pyarrow as pa

    from foretune.tasks.quality.settings import QualitySettings


def rows_schema() -> pa.Schema:
    """Columns that `shard_quality` hands to `reduce_quality`."""
    import pyarrow as pa

    match = pa.struct(
        {
            "rule": pa.string(),
            "phrase": pa.string(),
            "severity": pa.string(),  # of a harmful keyword, or of the rule; null for a stock phrase
            "part": pa.string(),  # prompt, completion or rejected
            "start": pa.int32(),  # in characters
            "end": pa.int32(),
        }
    )
    return pa.schema(
        {
            "sample_id": pa.string(),
            "row": pa.int64(),
            "occurrence": pa.int32(),
            "tokens": pa.int32(),  # after truncation; the longer answer of a preference row
            "trained_tokens": pa.int32(),  # with a label that has a token before it
            "truncated_tokens": pa.int32(),
            "completion_words": pa.int32(),
            "assistant_speak": pa.float64(),  # weight of the stock phrases found
            "flags": pa.list_(pa.string()),
            "matches": pa.list_(match),
            "prompt_digest": pa.string(),  # null without a prompt
            "completion_digest": pa.string(),
            "words": pa.list_(pa.uint64()),  # hashes of the different words of prompt and completion
            "signature": pa.list_(pa.uint32()),  # MinHash of the words
        }
    )


@dataclass(frozen=True)
class Texts:
    """The parts of a row as they are searched."""

    prompt: NormalText
    completion: NormalText
    prompt_words: list[str]
    completion_words: list[str]
    prompt_set: frozenset[str]
    completion_set: frozenset[str]

    @classmethod
    def of(cls, sample: Mapping[str, Any]) -> Texts:
        prompt, completion = normal_text(sample["prompt"]), normal_text(sample["completion"])
        asked, answered = all_words(prompt.text), all_words(completion.text)
        return cls(prompt, completion, asked, answered, frozenset(asked), frozenset(answered))

    def words(self) -> frozenset[str]:
        """The different words of prompt and completion."""
        return self.prompt_set | self.completion_set

    @functools.cached_property
    def language(self) -> str:
        """Of the completion."""
        return language_of(self.completion.text, self.completion_set)


class RowRules:
    """The rules that need one row alone, with their phrase finders built once."""

    def __init__(self, settings: QualitySettings) -> None:
        self.settings = settings
        self.keywords, self.stock = settings.keywords(), settings.stock_phrases()
        self.active = settings.active()
        self.texts = TextRules(*settings.text_rules())
        lists = {
            "harmful": [keyword.phrase for keyword in self.keywords],
            "speak": [phrase.phrase for phrase in self.stock],
            "refusal": REFUSALS,
            "text": [phrase for _, phrase, _ in self.texts.phrases],
        }
        self._listed = [(name, at) for name, phrases in lists.items() for at in range(len(phrases))]
        self._phrases = [phrase for phrases in lists.values() for phrase in phrases]
        self._finder: PhraseFinder = PhraseFinder(self._phrases)
        self._severities = {name: rule.severity for name, rule in self.active.items()}
        self._computed = settings.builtin_rules

    def record_of(self, sample: Mapping[str, Any], texts: Texts) -> dict[str, Any]:
        """One row's record, without the columns that are made for all rows together."""
        answer = sample["completion"] + "\n" + (sample["rejected"] or "")
        record = {
            **{name: sample[name] for name in ("sample_id", "row", "occurrence")},
            **_token_counts(sample),
            "completion_words": len(texts.completion_words),
            "prompt_digest": _digest(texts.prompt.text) if texts.prompt.text.strip() else None,
            "completion_digest": _digest(answer),
            **self.judged(sample, texts),
        }
        copied = ["exact_duplicate"] if sample["occurrence"] else []
        record["flags"] = self.settings.kept([*record["flags"], *_cut_flags(record), *copied], sample["sample_id"])
        return record

    def judged(self, sample: Mapping[str, Any], texts: Texts) -> dict[str, Any]:
        """Flags, matches and the weight of stock phrases that the texts of a row alone earn it."""
        prompt, completion = self._found(texts.prompt), self._found(texts.completion)
        matches = [*self._harmful_matches(prompt, completion), *self._speak_matches(completion)]
        stock = {match["phrase"] for match in matches if match["rule"] == "assistant_speak"}
        speak = sum(phrase.weight for phrase in self.stock if phrase.phrase in stock) if stock else 0.0
        flags = self._phrase_flags(matches, speak, "refusal" in completion) if matches else []
        harmful = bool(flags) and flags[0].startswith("harmful")
        found = self._text_findings(sample, texts, prompt, completion, harmful)
        if sample["rejected"] is not None:
            if word_count(sample["rejected"]) == 0 and texts.completion_words:
                flags.append("empty_completion")
            if sample["rejected"] == sample["completion"]:
                flags.append("identical_pair")
        flags[len(flags) :] = _short_flags(len(texts.completion_words), self.settings.min_completion_words)
        flags += dict.fromkeys(each.rule for each in found)
        matches += matches_of(found, self._severities)
        return {"flags": flags, "matches": matches, "assistant_speak": speak}

    def listed_phrases(self) -> list[str]:
        """Every phrase of every list."""
        return self._phrases

    def phrase_weight(self, number: int, part: str) -> float:
        """How far a phrase in one part goes at most towards a flag or a finding; 1 is one."""
        name, at = self._listed[number]
        if name == "harmful":
            return 0.5 if self.keywords[at].severity == "info" else 1.0
        if name == "text":
            return 1.0 if part in self.texts.phrases[at][2] else 0.0
        if part == "prompt":
            return 0.0
        return 1.0 if name == "refusal" else self.stock[at].weight / self.settings.assistant_speak_score

    def _found(self, text: NormalText) -> dict[str, list[Match]]:
        """Every phrase of every list, in one pass over the text."""
        found: dict[str, list[Match]] = {}
        for match in self._finder.find(text):
            name, at = self._listed[match.phrase]
            found.setdefault(name, []).append(Match(at, match.start, match.end))
        return found

    def _text_findings(
        self,
        sample: Mapping[str, Any],
        texts: Texts,
        prompt: Mapping[str, list[Match]],
        completion: Mapping[str, list[Match]],
        harmful: bool,
    ) -> list[Finding]:
        """What patterns, phrases and whole texts show, as far as its rules are on."""
        found = self.texts.find("prompt", sample["prompt"], prompt.get("text", ()))
        # Half of a text said four times has no more than five eighths of its words once.
        repetitive = 8 * len(texts.completion_set) <= 5 * len(texts.completion_words)
        found += self.texts.find("completion", sample["completion"], completion.get("text", ()), repetitive)
        if sample["rejected"] is not None:
            other = self._found(normal_text(sample["rejected"]))
            found += self.texts.find("rejected", sample["rejected"], other.get("text", ()))
        if not self._computed:
            return found
        if not harmful and "refusal" in self.active and (declined := completion.get("refusal")):
            found.append(Finding("refusal", "completion", declined[0].start, declined[0].end, "opening"))
        if "prompt_leak" in self.active and (start := _repeated_prompt(texts)) >= 0:
            span = texts.completion.span(start, start + REPEATED)
            found.append(Finding("prompt_leak", "completion", *span, "the prompt's beginning"))
        if "language_mismatch" in self.active and _mismatched(texts):
            found.append(Finding("language_mismatch", "completion", 0, len(sample["completion"]), "language"))
        return found

    def _harmful_matches(
        self, prompt: Mapping[str, list[Match]], completion: Mapping[str, list[Match]]
    ) -> list[dict[str, Any]]:
        return [
            {
                "rule": "harmful_content",
                "phrase": self.keywords[match.phrase].phrase,
                "severity": self.keywords[match.phrase].severity,
                "part": part,
                "start": match.start,
                "end": match.end,
            }
            for part, text in (("prompt", prompt), ("completion", completion))
            for match in text.get("harmful", ())
        ]

    def _speak_matches(self, completion: Mapping[str, list[Match]]) -> list[dict[str, Any]]:
        return [
            {
                "rule": "assistant_speak",
                "phrase": self.stock[match.phrase].phrase,
                "severity": None,
                "part": "completion",
                "start": match.start,
                "end": match.end,
            }
            for match in completion.get("speak", ())
        ]

    def _phrase_flags(self, matches: Sequence[Mapping[str, Any]], speak: float, declined: bool) -> list[str]:
        harmful = {part for part in ("prompt", "completion") if _is_harmful(matches, part)}
        flags = ["harmful_refused" if declined else "harmful_content"] if harmful else []
        if speak >= self.settings.assistant_speak_score:
            flags.append("assistant_speak")
        return flags


REPEATED = 80
"""Characters of a prompt that a completion repeats word by word, from the prompt's first on."""


def _repeated_prompt(texts: Texts) -> int:
    beginning = texts.prompt.text[:REPEATED]
    return texts.completion.text.find(beginning) if len(beginning) == REPEATED else -1


def _mismatched(texts: Texts) -> bool:
    if not texts.language:
        return False
    asked = language_of(texts.prompt.text, texts.prompt_set)
    return bool(asked) and asked != texts.language


def _is_harmful(matches: Sequence[Mapping[str, Any]], part: str) -> bool:
    """One strong keyword, or two different weak ones."""
    found = {
        match["phrase"]: match["severity"]
        for match in matches
        if match["rule"] == "harmful_content" and match["part"] == part
    }
    return any(severity != "info" for severity in found.values()) or len(found) >= 2


def _token_counts(sample: Mapping[str, Any]) -> dict[str, int]:
    """Tokens of a row; of a preference row the longer answer's, and the labels of both."""
    tokens, trained = len(sample["input_ids"]), sum(sample["loss_mask"][1:])
    truncated = sample["full_tokens"] - tokens
    if sample["rejected_ids"] is not None:
        rejected = sum(sample["rejected_mask"][1:])
        trained = trained + rejected if trained and rejected else 0
        truncated = max(truncated, sample["rejected_full_tokens"] - len(sample["rejected_ids"]))
        tokens = max(tokens, len(sample["rejected_ids"]))
    return {"tokens": tokens, "trained_tokens": trained, "truncated_tokens": truncated}


def _cut_flags(record: Mapping[str, Any]) -> list[str]:
    cut, trained = record["truncated_tokens"] > 0, record["trained_tokens"] > 0
    found = {"too_long": cut, "completion_cut": cut and trained, "no_trained_tokens": not trained}
    return [flag for flag, there in found.items() if there]


def _short_flags(words: int, least: int) -> list[str]:
    return ["empty_completion"] if words == 0 else ["short_completion"] if words < least else []


def _digest(text: str) -> str:
    from foretune.storage.digests import sha256_hex

    return sha256_hex(" ".join(text.casefold().split()).encode())[:32]
