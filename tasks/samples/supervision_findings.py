"""What the tokens and labels of a dataset would teach without anybody's wish: rules with row numbers and a remedy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from foretune.tasks.samples.chat_template import PINNED_DATE
from foretune.tasks.samples.unread import splits_line, unread_columns, unread_signals

if TYPE_CHECKING:
    from foretune.tasks.samples.chat import ChatTokenizer
    from foretune.tasks.samples.table import DatasetSettings

Severity = Literal["info", "warn", "critical"]


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
    "template_in_messages": "messages that hold a chat template's marks",
    "template_drops_content": "a message that the chat template does not write",
    "template_strips_thinking": "thoughts of the assistant that the chat template leaves out",
    "template_drops_tool_calls": "tool calls that the chat template does not write",
    "template_changes_earlier_turns": "turns that the template writes otherwise once others follow",
    "prompt_differs_before_answer": "a prompt that the template writes otherwise where an answer follows",
    "date_in_template": "the chat template writes the day's date",
    "unread_columns": "columns of the dataset that no sample holds",
    "splits_not_read": "splits beside the training rows",
}
"""Every rule that `inspect` knows, in the order in which they are shown."""


def settings_findings(
    tokenizer: ChatTokenizer, conversational: bool, rows: Sequence[Mapping[str, Any]], settings: DatasetSettings
) -> Iterator[Finding]:
    """Findings of the tokenizer, the template and the columns: of every row."""
    pad, eos = tokenizer.special_tokens.get("pad_token"), tokenizer.eos_token
    if eos and pad in (None, eos):
        says = f"{eos} pads too{'' if pad else ' (no pad_token is named)'}; TRL tells padding by length, and trains it"
        remedy = "a collator that masks every pad token would never train the end: name another pad_token for it"
        yield Finding("pad_is_eos", "info", None, says, remedy)
    if conversational and any("strftime_now" in template for template in tokenizer.templates.values()):
        says = f"a trainer writes its own day's date into every row; here {PINNED_DATE:%d %b %Y} stands for it"
        remedy = "set chat_template_kwargs in the rows to pin the date"
        yield Finding("date_in_template", "info", None, says, remedy)
    for signal in unread_signals(unread_columns(rows, settings.columns, settings.group_column)):
        yield Finding("unread_columns", signal["severity"], None, signal["advice"], "map the columns, or drop them")


def marks_missing() -> Finding:
    """What a run refuses."""
    says = "assistant_only_loss needs {% generation %} marks, and the template has none; shown is a run without it"
    remedy = "add the marks to chat_template.jinja, or set dataset.assistant_only_loss to false; a run refuses this"
    return Finding("no_generation_marks", "critical", None, says, remedy)


def other_splits_finding(splits: Sequence[str]) -> Iterator[Finding]:
    """That a folder holds more than its training rows."""
    if splits:
        remedy = "name a file or a glob to train on those rows, or set dataset.heldout.path to the same folder"
        yield Finding("splits_not_read", "info", None, splits_line(splits), remedy)


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """In the order of `RULES`."""
    order = list(RULES)
    return sorted(findings, key=lambda each: order.index(each.rule))
