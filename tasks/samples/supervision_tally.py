"""What the tokens of a dataset's rows show, row after row: counts, and findings of how rows begin and end."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretune.tasks.loading.tokenizer_files import read_config
from foretune.tasks.samples.supervision_findings import Finding

if TYPE_CHECKING:
    from foretune.tasks.samples.chat import ChatTokenizer
    from foretune.tasks.samples.forms import CanonicalRow
    from foretune.tasks.samples.loss_masks import LossRules
    from foretune.tasks.samples.supervision import SeenRow, Supervised

MARK = 4
"""Characters: shorter special tokens, as "</s>" is not, turn up in ordinary text."""


class Tally:
    """Rows are added one by one and not kept: of them stay counts and row numbers."""

    def __init__(self, tokenizer: ChatTokenizer, folder: Path, rules: LossRules) -> None:
        self.rows = 0
        self.tokens: Counter[str] = Counter()  # as `Supervised.counts` names them
        self._rules = rules
        self._longest = 0
        self._endings = _Endings(tokenizer, stop_tokens(folder, tokenizer))
        self._found: defaultdict[str, list[int]] = defaultdict(list)
        bos = tokenizer.special_tokens.get("bos_token")
        self._bos = tokenizer.backend.token_to_id(bos) if bos else None
        added = tokenizer.backend.get_added_tokens_decoder().values()
        self._marks = [each.content for each in added if each.special and len(each.content) >= MARK]

    def add(self, row: SeenRow) -> None:
        self.rows += 1
        for sequence in row.sequences:
            self.tokens.update(sequence.counts())
            self._longest = max(self._longest, len(sequence.ids))
        for rule in self._rules_of(row):
            self._found[rule].append(row.row)

    def _rules_of(self, row: SeenRow) -> Iterator[str]:
        if not any(sequence.trained for sequence in row.sequences):
            yield "no_trained_tokens"
        else:
            if any(any(s.loss_mask[s.kept :]) and s.trained > 0 for s in row.sequences):
                yield "answer_cut"
            endings = {self._endings.of(sequence) for sequence in row.sequences}
            if "none" in endings:
                yield "eos_not_trained"
            elif "elsewhere" in endings:
                yield "end_is_not_eos"
        if self._bos is not None and any(s.ids[:2] == [self._bos, self._bos] for s in row.sequences):
            yield "doubled_bos"
        if row.canonical.form == "text" and self._marks_in(str(row.canonical.completion)) >= 2:
            yield "template_in_text"
        if row.canonical.conversational and any(self._marks_in(text) >= 2 for text in _contents(row.canonical)):
            yield "template_in_messages"

    def _marks_in(self, text: str) -> int:
        return sum(text.count(mark) for mark in self._marks)

    def findings(self) -> Iterator[Finding]:
        """Of all rows so far, with their numbers in order."""
        longer = f"raise dataset.max_length (the longest row has {self._longest:,} tokens), or drop or shorten the rows"
        known: list[tuple[str, Any, str, str]] = [
            (
                "no_trained_tokens", "warn",
                "nothing of the row is trained on: it is cut before its answer, or has none", longer,
            ),
            (
                "answer_cut", "warn",
                f"the answer's end lies behind dataset.max_length ({self._rules.max_length}): it is never trained on",
                longer,
            ),
            (
                "eos_not_trained", "critical",
                "what is trained on does not end in an end token: the model learns to speak, and never to stop",
                "put the end of the turn inside the template's {% generation %} block, or write it into the template",
            ),
            (
                "end_is_not_eos", "warn",
                f"the answers end in {self._endings.seen()}, but the model stops at {self._endings.stops()}: it would "
                "not stop",
                "name that token as eos_token in tokenizer_config.json, or in generation_config.json's eos_token_id",
            ),
            (
                "doubled_bos", "warn",
                "the text holds the BOS token and the tokenizer adds one, for the trainer as here",
                "leave it out of the text, or give the rows as messages",
            ),
            (
                "template_in_text", "warn",
                "a chat template seems applied already, so that the prompt is trained on too",
                "give the rows as messages",
            ),
            (
                "template_in_messages", "warn",
                "a message holds a chat template's marks, and the template is applied around it once more",
                "take the marks out of the messages, or give prompt and completion as text",
            ),
        ]  # fmt: skip
        for rule, severity, says, remedy in known:
            if self._found[rule]:
                yield Finding(rule, severity, sorted(self._found[rule]), says, remedy)


def _contents(row: CanonicalRow) -> Iterator[str]:
    """The texts of a conversation's messages."""
    for part in (row.prompt, row.completion, row.rejected):
        for message in part if isinstance(part, list) else ():
            if isinstance(message.get("content"), str):
                yield message["content"]


def stop_tokens(folder: Path, tokenizer: ChatTokenizer) -> set[int]:
    """Tokens at which a model of this folder stops: the tokenizer's EOS, and what its configurations name."""
    stops = {tokenizer.backend.token_to_id(tokenizer.eos_token)} if tokenizer.eos_token else set()
    for name in ("generation_config.json", "config.json"):
        content = read_config(folder / name) if name == "config.json" else _generation_config(folder)
        ids = content.get("eos_token_id")
        stops |= set(ids if isinstance(ids, list) else [ids])
    return {stop for stop in stops if isinstance(stop, int)}


def _generation_config(folder: Path) -> dict[str, Any]:
    from foretune.tasks.loading.foreign import read_json

    path = folder / "generation_config.json"
    content = read_json(path) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


class _Endings:
    """How the trained part of sequences ends."""

    def __init__(self, tokenizer: ChatTokenizer, stops: set[int]) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._added = set(tokenizer.backend.get_added_tokens_decoder())
        self._blank: dict[int, bool] = {}
        self._seen: set[int] = set()

    def of(self, sequence: Supervised) -> str:
        """ "stop", "elsewhere" or "none"; a sequence without a label, or with its end cut off, counts as "stop"."""
        ids, labelled = sequence.ids, sequence.loss_mask
        if not sequence.trained or any(labelled[sequence.kept :]):
            return "stop"
        backwards = range(sequence.kept - 1, 0, -1)
        last = next((ids[at] for at in backwards if labelled[at] and not self._is_blank(ids[at])), None)
        if last in self._stops:
            return "stop"
        if last not in self._added:
            return "none"
        self._seen.add(last)
        return "elsewhere"

    def _is_blank(self, token: int) -> bool:
        if token not in self._blank:
            self._blank[token] = not self._tokenizer.backend.decode([token], skip_special_tokens=False).strip()
        return self._blank[token]

    def seen(self) -> str:
        return self._named(self._seen)

    def stops(self) -> str:
        return self._named(self._stops) or "no token that its configuration names"

    def _named(self, tokens: set[int]) -> str:
        return ", ".join(str(self._tokenizer.backend.id_to_token(token)) for token in sorted(tokens))
