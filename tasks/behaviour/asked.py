"""Prompts: as people read them, and as the tokens that the trainer's rows have before their first trained one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from foretune.storage.digests import digest_of
from foretune.storage.errors import BadInput
from foretune.tasks.behaviour.prompt_files import Part
from foretune.tasks.samples.chat import ChatTokenizer
from foretune.tasks.samples.chat_template import ChatTemplateError
from foretune.tasks.samples.loss_masks import shared_tokens
from foretune.tasks.samples.messages import Message, shown
from foretune.tasks.samples.shards import bottom_k
from foretune.tasks.samples.template_child import renderer

if TYPE_CHECKING:
    import pyarrow as pa

Origin = Literal["file", "probe", "held-out"]

OPENING = 16
"""Tokens of a row without a prompt that stand for one."""
MARKER = "x"  # a user turn whose rendering shows the generation prompt


@dataclass(frozen=True)
class Asked:
    """One prompt, by what it says: equal prompts are one."""

    input_ids: tuple[int, ...]
    text: str  # as a person reads it
    origin: Origin
    row: int  # in its file, from 0
    note: str | None = None  # what was done to it
    reference: str | None = None  # the answer that the row gives

    @property
    def prompt_id(self) -> str:
        return prompt_id(self.input_ids)


def prompt_id(ids: Sequence[int]) -> str:
    """64 hexadecimal digits of a prompt's tokens."""
    return digest_of(list(ids))


def chosen(fixed: Iterable[Asked], probes: Iterable[Asked], heldout: Iterable[Asked], rows: int) -> list[Asked]:
    """Every prompt of the file, then `rows` others: probes first, each by a hash of what it says. In that order."""
    found = {each.prompt_id: each for each in fixed}
    for others in (probes, heldout):
        room = rows - sum(each.origin != "file" for each in found.values())
        new = {each.prompt_id: each for each in others if each.prompt_id not in found}
        found |= {key: new[key] for key in bottom_k(new, max(room, 0), "answers")}
    return list(found.values())


def prompts_of_rows(table: pa.Table, tokenizer: ChatTokenizer, origin: Origin) -> Iterator[Asked]:
    """What precedes the first trained token of every row of a `samples` table.

    Where the whole row is trained on, what precedes the last answer of a conversation, else the row's text prompt,
    else its first tokens.
    """
    marks = generation_marks(tokenizer)
    columns = ("input_ids", "loss_mask", "prompt", "completion", "row")
    for row in zip(*(table[name].to_pylist() for name in columns), strict=True):
        ids, mask, prompt, completion, number = row
        if not any(mask[1:]):
            continue
        length, note = _prompt_length(ids, mask, prompt, marks, tokenizer)
        if origin == "probe" and note:
            continue  # a text: it asks nothing
        reference = completion
        if note:
            prompt = tokenizer.backend.decode(ids[:length], skip_special_tokens=True)
            reference = tokenizer.backend.decode(ids[length:], skip_special_tokens=True)
        yield Asked(tuple(ids[:length]), prompt, origin, number, note, reference)


def _prompt_length(
    ids: list[int], mask: list[bool], prompt: str, marks: list[int], tokenizer: ChatTokenizer
) -> tuple[int, str | None]:
    """Tokens of a row's prompt, and a word where the row has none."""
    first = mask.index(True)
    if first > 1 or (first and prompt):  # a single token may be the tokenizer's BOS
        return first, None
    end = _last_end(ids, marks)
    if end:
        return end, None
    if prompt:
        shared = shared_tokens(tokenizer.encode_texts([prompt])[0], ids)
        if 1 < shared < len(ids):
            return shared, None
    opening = min(OPENING, len(ids) - 1)
    return opening, f"the row has no prompt: its first {opening} tokens are asked"


def _last_end(ids: list[int], marks: list[int]) -> int | None:
    """Where the last occurrence of `marks` ends, with something after it."""
    span = len(marks)
    starts = range(len(ids) - span - 1, -1, -1) if span else ()
    return next((start + span for start in starts if ids[start : start + span] == marks), None)


def generation_marks(tokenizer: ChatTokenizer) -> list[int]:
    """The tokens with which a template opens an answer; none where it opens none."""
    if not tokenizer.has_template:
        return []
    turn: list[Message] = [{"role": "user", "content": MARKER}]
    asked = [tokenizer.conversation(0, turn, add_generation_prompt=opened) for opened in (False, True)]
    try:
        with renderer(1) as child:
            closed, opened = (chat.text for chat in child.render(asked))
    except (ChatTemplateError, BadInput):
        return []
    if not opened.startswith(closed):
        return []
    return tokenizer.backend.encode(opened[len(closed) :], add_special_tokens=False).ids


def as_conversation(table: pa.Table, tokenizer: ChatTokenizer) -> bool:
    """Whether the rows of a `samples` table were rendered by the chat template: then prompts are too."""
    if not tokenizer.has_template:
        return False
    form, ids, prompt = (table[name][0].as_py() for name in ("form", "input_ids", "prompt"))
    if form in ("messages", "text"):
        return form == "messages"
    plain = tokenizer.encode_texts([prompt])[0]
    return shared_tokens(plain, ids) < max(len(plain) - 1, 1)  # the last token may merge with the answer's first


def encoded_prompts(parts: Sequence[Part], tokenizer: ChatTokenizer, conversation: bool) -> list[Asked]:
    """Prompts given by hand as tokens: as a user's turn where the rows are conversations, else as plain text.

    BadInput for messages without a chat template, or ones that it refuses.
    """
    asked: list[Asked] = []
    for number, part in enumerate(parts):
        if isinstance(part, str) and not conversation:
            ids = tokenizer.encode_texts([part])[0]
        else:
            messages: list[Message] = [{"role": "user", "content": part}] if isinstance(part, str) else part
            ids = _rendered(messages, number, tokenizer)
        if not ids:
            raise BadInput(f"prompt {number + 1} has no token; write something")
        asked.append(Asked(tuple(ids), shown(part), "file", number))
    return asked


def _rendered(messages: list[Message], number: int, tokenizer: ChatTokenizer) -> list[int]:
    conversation = tokenizer.conversation(number, messages, add_generation_prompt=True)
    try:
        with renderer(1) as child:
            return tokenizer.encode_chats(child.render([conversation]))[0].input_ids
    except ChatTemplateError as fault:
        raise BadInput(f"prompt {number + 1}: {str(fault).removeprefix(f'row {number}: ')}") from None


def cut_to(asked: Asked, window: int | None, max_new_tokens: int) -> tuple[Asked, int]:
    """The prompt with room for an answer in the model's window: its end, and how many tokens were left out before."""
    room = len(asked.input_ids) if window is None else window - max_new_tokens
    if room < 1:
        raise BadInput(
            f"answers.max_new_tokens {max_new_tokens}: the model has {window} positions and none is left for a "
            f"prompt; set it below {window}"
        )
    cut = max(len(asked.input_ids) - room, 0)
    return (replace(asked, input_ids=asked.input_ids[cut:]) if cut else asked), cut


def as_records(prompts: Sequence[Asked]) -> list[dict[str, Any]]:
    """Rows of prompts.parquet."""
    return [
        {
            "prompt_id": each.prompt_id,
            "origin": each.origin,
            "row": each.row,
            "prompt": each.text,
            "note": each.note,
            "reference": each.reference,
            "input_ids": list(each.input_ids),
        }
        for each in prompts
    ]
