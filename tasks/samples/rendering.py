"""How rows that were rendered differ from what they seem to say: a date of the day, a BOS twice, a template twice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foretune.tasks.engine.signals import Signal
from foretune.tasks.samples.chat_template import PINNED_DATE

if TYPE_CHECKING:
    import pyarrow as pa

    from foretune.tasks.samples.chat import ChatTokenizer

MARK = 4  # characters: shorter special tokens, as "</s>" is not, turn up in ordinary text


def rendering_signals(table: pa.Table, tokenizer: ChatTokenizer) -> list[dict[str, Any]]:
    """`date_in_template`, `doubled_bos` and `template_in_text` of a role's samples."""
    rows, doubled, marked = len(table), _doubled(table, tokenizer), _marked(table, tokenizer)
    dated = any("strftime_now" in template for template in tokenizer.templates.values())
    signals = []
    if dated and not _plain(table):
        advice = (
            f"the chat template writes the day's date; {PINNED_DATE:%d %b %Y} stands for it, so that the same rows are "
            "the same samples tomorrow. A trainer writes its own day's: set chat_template_kwargs in the rows to pin it"
        )
        signals.append(Signal("date_in_template", "info", rows, 0, advice).stored())
    if doubled:
        advice = (
            f"{doubled:,} of {rows:,} rows begin with the BOS token twice: their text holds one and the tokenizer adds "
            "one, for the trainer as here; leave it out of the text"
        )
        signals.append(Signal("doubled_bos", "warn", doubled, 0, advice).stored())
    if marked:
        advice = (
            f"{marked:,} of {rows:,} rows hold a chat template's marks as text: it seems applied already, and "
            "the whole row is trained on, the prompt too; give the rows as messages"
        )
        signals.append(Signal("template_in_text", "warn", marked, 0, advice).stored())
    return signals


def _plain(table: pa.Table) -> bool:
    return table["form"][0].as_py() == "text"


def _doubled(table: pa.Table, tokenizer: ChatTokenizer) -> int:
    bos = tokenizer.special_tokens.get("bos_token")
    token = tokenizer.backend.token_to_id(bos) if bos else None
    if token is None:
        return 0
    return sum(ids[:2] == [token, token] for batch in table["input_ids"].chunks for ids in batch.to_pylist())


def _marked(table: pa.Table, tokenizer: ChatTokenizer) -> int:
    """Rows of plain text that hold two of the tokenizer's special tokens, the ends of the text left out."""
    if not _plain(table):
        return 0
    added = tokenizer.backend.get_added_tokens_decoder().values()
    marks = [token.content for token in added if token.special and len(token.content) >= MARK]
    texts = (text for batch in table["completion"].chunks for text in batch.to_pylist())
    return sum(sum(text.count(mark) for mark in marks) >= 2 for text in texts)
