"""Pass 0, row by row: flags that a row earns by itself, and what is needed to compare it with others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from foretune.tasks.quality.diversity import word_count
from foretune.tasks.quality.phrases import NormalText, PhraseFinder
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
            "severity": pa.string(),  # of a harmful keyword
            "part": pa.string(),  # prompt or completion
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


class RowRules:
    """The rules that need one row alone, with their phrase finders built once."""

    def __init__(self, settings: QualitySettings) -> None:
        self.settings = settings
        self.keywords, self.stock = settings.keywords(), settings.stock_phrases()
        self.harmful: PhraseFinder = PhraseFinder([keyword.phrase for keyword in self.keywords])
        self.speak: PhraseFinder = PhraseFinder([phrase.phrase for phrase in self.stock])
        self.refusal: PhraseFinder = PhraseFinder(REFUSALS)

    def record_of(self, sample: Mapping[str, Any], prompt: NormalText, completion: NormalText) -> dict[str, Any]:
        """One row's record, without the columns that are made for all rows together."""
        answer = sample["completion"] + "\n" + (sample["rejected"] or "")
        record = {
            **{name: sample[name] for name in ("sample_id", "row", "occurrence")},
            **_token_counts(sample),
            "completion_words": word_count(completion.text),
            "matches": [*self._harmful_matches(prompt, completion), *self._speak_matches(completion)],
            "prompt_digest": _digest(prompt.text) if prompt.text.strip() else None,
            "completion_digest": _digest(answer),
        }
        found = {match["phrase"] for match in record["matches"] if match["rule"] == "assistant_speak"}
        record["assistant_speak"] = sum(stock.weight for stock in self.stock if stock.phrase in found)
        record["flags"] = [
            *self._phrase_flags(record, completion),
            *_length_flags(record, self.settings.min_completion_words),
            *(["exact_duplicate"] if sample["occurrence"] else []),
            *(["empty_completion"] if _is_empty_rejected(sample, completion) else []),
            *(["identical_pair"] if sample["rejected"] == sample["completion"] else []),
        ]
        return record

    def _harmful_matches(self, prompt: NormalText, completion: NormalText) -> list[dict[str, Any]]:
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
            for match in self.harmful.find(text)
        ]

    def _speak_matches(self, completion: NormalText) -> list[dict[str, Any]]:
        return [
            {
                "rule": "assistant_speak",
                "phrase": self.stock[match.phrase].phrase,
                "severity": None,
                "part": "completion",
                "start": match.start,
                "end": match.end,
            }
            for match in self.speak.find(completion)
        ]

    def _phrase_flags(self, record: Mapping[str, Any], completion: NormalText) -> list[str]:
        harmful = {part for part in ("prompt", "completion") if _is_harmful(record["matches"], part)}
        declined = bool(harmful) and bool(self.refusal.find(completion))
        flags = ["harmful_refused" if declined else "harmful_content"] if harmful else []
        if record["assistant_speak"] >= self.settings.assistant_speak_score:
            flags.append("assistant_speak")
        return flags


def _is_empty_rejected(sample: Mapping[str, Any], completion: NormalText) -> bool:
    """Whether the rejected answer of a pair has no words; an empty chosen one has that flag already."""
    rejected = sample["rejected"]
    return rejected is not None and word_count(rejected) == 0 and word_count(completion.text) > 0


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


def _length_flags(record: Mapping[str, Any], min_completion_words: int) -> list[str]:
    cut, trained, count = (
        record["truncated_tokens"] > 0,
        record["trained_tokens"] > 0,
        record["completion_words"],
    )
    short = "empty_completion" if count == 0 else "short_completion" if count < min_completion_words else None
    found = {"too_long": cut, "completion_cut": cut and trained, "no_trained_tokens": not trained}
    return [*(flag for flag, there in found.items() if there), *([short] if short else [])]


def _digest(text: str) -> str:
    from foretune.storage.digests import sha256_hex

    return sha256_hex(" ".join(text.casefold().split()).encode())[:32]
