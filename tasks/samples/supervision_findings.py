"""What the tokens and labels of a dataset would teach without anybody's wish: rules with row numbers and a remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from foretune.tasks.loading.tokenizer_files import read_config
from foretune.tasks.samples.chat_template import PINNED_DATE
from foretune.tasks.samples.supervision import Seen, SeenRow, Supervised
from foretune.tasks.samples.unread import unread_columns, unread_signals

if TYPE_CHECKING:
    from foretune.tasks.samples.chat import ChatTokenizer
    from foretune.tasks.samples.table import DatasetSettings

Severity = Literal["info", "warn", "critical"]
MARK = 4
"""Characters: shorter special tokens, as "</s>" is not, turn up in ordinary text."""


@dataclass(frozen=True)
class Finding:
    """One rule that found something."""

    rule: str
    severity: Severity
    rows: list[int] | None  # their numbers, from 0; None: it is of the tokenizer or the template, and so of every row
    says: str
    remedy: str


RULES = {
    "no_generation_marks": "assistant_only_loss, but no template says which text is the assistant's",
    "no_trained_tokens": "a row without a label: nothing of it is trained on",
    "answer_cut": "the end of what is trained on lies behind dataset.max_length",
    "eos_not_trained": "no end token is trained on: the model never learns to stop",
    "end_is_not_eos": "the end that is trained on is not the one at which the model stops",
    "pad_is_eos": "the padding token is the end token",
    "doubled_bos": "a row begins with the BOS token twice",
    "template_in_text": "plain text that holds a chat template's marks",
    "template_drops_content": "a message that the chat template does not write",
    "template_strips_thinking": "thoughts of the assistant that the chat template leaves out",
    "template_drops_tool_calls": "tool calls that the chat template does not write",
    "template_changes_earlier_turns": "turns that the template writes otherwise once others follow",
    "prompt_differs_before_answer": "a prompt that the template writes otherwise where an answer follows",
    "date_in_template": "the chat template writes the day's date",
    "unread_columns": "columns of the dataset that no sample holds",
}
"""Every rule that `inspect` knows, in the order in which they are shown."""


def token_findings(seen: Seen, folder: Path) -> Iterator[Finding]:
    """Findings of the tokens and labels alone."""
    trained, cut, endless, elsewhere = [], [], [], []
    endings = _Endings(seen.tokenizer, stop_tokens(folder, seen.tokenizer))
    for row in seen.rows:
        (trained if any(s.trained for s in row.sequences) else cut).append(row)
    unlabelled = [row.row for row in cut]
    if unlabelled:
        says = "nothing of the row is trained on: it is cut before its answer, or has none"
        yield Finding("no_trained_tokens", "warn", unlabelled, says, _longer(seen))
    shortened = _numbers(trained, lambda s: any(s.loss_mask[s.kept :]) and s.trained > 0)
    if shortened:
        says = f"the answer's end lies behind dataset.max_length ({seen.rules.max_length}): it is never trained on"
        yield Finding("answer_cut", "warn", shortened, says, _longer(seen))
    for row in trained:
        found = {endings.of(sequence) for sequence in row.sequences}
        (endless if "none" in found else elsewhere if "elsewhere" in found else []).append(row.row)
    if endless:
        says = "what is trained on does not end in an end token: the model learns to speak, and never to stop"
        remedy = "put the end of the turn inside the template's {% generation %} block, or write it into the template"
        yield Finding("eos_not_trained", "critical", endless, says, remedy)
    if elsewhere:
        says = f"the answers end in {endings.seen()}, but the model stops at {endings.stops()}: it would not stop"
        remedy = "name that token as eos_token in tokenizer_config.json, or in generation_config.json's eos_token_id"
        yield Finding("end_is_not_eos", "warn", elsewhere, says, remedy)


def _longer(seen: Seen) -> str:
    longest = max((len(sequence.ids) for row in seen.rows for sequence in row.sequences), default=0)
    return f"raise dataset.max_length (the longest row has {longest:,} tokens), or drop or shorten the rows"


def _numbers(rows: Sequence[SeenRow], found: Callable[[Supervised], bool]) -> list[int]:
    return [row.row for row in rows if any(map(found, row.sequences))]


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
        labels = [at for at in range(1, len(sequence.ids)) if sequence.loss_mask[at]]
        if not labels or labels[-1] >= sequence.kept:
            return "stop"
        last = next((sequence.ids[at] for at in reversed(labels) if not self._is_blank(sequence.ids[at])), None)
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


def text_findings(seen: Seen) -> Iterator[Finding]:
    """Findings of how rows begin, and of marks in plain text."""
    bos = seen.tokenizer.special_tokens.get("bos_token")
    token = seen.tokenizer.backend.token_to_id(bos) if bos else None
    doubled = _numbers(seen.rows, lambda s: token is not None and s.ids[:2] == [token, token])
    if doubled:
        says = "the text holds the BOS token and the tokenizer adds one, for the trainer as here"
        yield Finding("doubled_bos", "warn", doubled, says, "leave it out of the text, or give the rows as messages")
    added = seen.tokenizer.backend.get_added_tokens_decoder().values()
    marks = [each.content for each in added if each.special and len(each.content) >= MARK]
    marked = [
        row.row
        for row in seen.rows
        if isinstance(row.canonical.completion, str)
        and sum((str(row.canonical.prompt or "") + row.canonical.completion).count(mark) for mark in marks) >= 2
    ]
    if marked:
        says = "a chat template seems applied already, so that the prompt is trained on too"
        yield Finding("template_in_text", "warn", marked, says, "give the rows as messages")


def settings_findings(seen: Seen, rows: Sequence[Mapping[str, Any]], settings: DatasetSettings) -> Iterator[Finding]:
    """Findings of the tokenizer, the template and the columns: of every row."""
    tokenizer = seen.tokenizer
    if seen.marks_missing:
        says = "assistant_only_loss needs {% generation %} marks, and the template has none; shown is a run without it"
        remedy = "add the marks to chat_template.jinja, or set dataset.assistant_only_loss to false; a run refuses this"
        yield Finding("no_generation_marks", "critical", None, says, remedy)
    pad, eos = tokenizer.special_tokens.get("pad_token"), tokenizer.eos_token
    if eos and pad in (None, eos):
        says = f"{eos} pads too{'' if pad else ' (no pad_token is named)'}; TRL tells padding by length, and trains it"
        remedy = "a collator that masks every pad token would never train the end: name another pad_token for it"
        yield Finding("pad_is_eos", "info", None, says, remedy)
    written = any("strftime_now" in template for template in tokenizer.templates.values())
    if written and any(row.canonical.conversational for row in seen.rows):
        says = f"a trainer writes its own day's date into every row; here {PINNED_DATE:%d %b %Y} stands for it"
        remedy = "set chat_template_kwargs in the rows to pin the date"
        yield Finding("date_in_template", "info", None, says, remedy)
    for signal in unread_signals(unread_columns(rows, settings.columns, settings.group_column)):
        yield Finding("unread_columns", signal["severity"], None, signal["advice"], "map the columns, or drop them")
