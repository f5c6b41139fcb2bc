"""Which tokens of a row carry loss: TRL's tokenisation of every form, to the token.

Source: trl 1.16, `SFTTrainer._prepare_dataset`, `DPOTrainer._prepare_dataset`, `DataCollatorForPreference`.
TRL drops a row without any label; here it stays, with a mask of False, so that the quality pass can name it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, cast

from foretune.storage.errors import BadInput
from foretune.tasks.samples.chat import ChatTokenizer, EncodedChat
from foretune.tasks.samples.chat_template import ChatTemplateError, RenderedChat
from foretune.tasks.samples.forms import CanonicalRow
from foretune.tasks.samples.messages import shown
from foretune.tasks.samples.template_child import Renderer, renderer

# Encodings keep offsets and strings of every token: a bounded number of them is alive at a time.
_CHUNK_ROWS = 1000
LONGEST_ROW = 16 * 2**20
"""Characters of a row, and of what is tokenised at once: 1 M tokens are about 5 M, of a prompt and an answer 10 M."""


@dataclass(frozen=True)
class LossRules:
    """What TRL's SFTConfig and DPOConfig call by the same names; the defaults are TRL's."""

    max_length: int | None = 1024  # tokens; what lies beyond is cut off at the end
    assistant_only_loss: bool = False
    completion_only_loss: bool | None = None  # None: only where a row has a prompt of its own
    append_eos: bool = True  # to plain text that does not end in it


@dataclass(frozen=True)
class Labelled:
    """A token sequence after truncation and its labels."""

    input_ids: list[int]
    loss_mask: list[bool]  # True = the token is a label
    full_tokens: int  # before truncation


@dataclass(frozen=True)
class LabelledRow:
    """A row as the loss sees it; a preference row's `answer` is the chosen one."""

    answer: Labelled
    rejected: Labelled | None = None


def labelled_rows(rows: Sequence[CanonicalRow], tokenizer: ChatTokenizer, rules: LossRules) -> Iterator[LabelledRow]:
    """Tokens and loss mask of every row, in order; rows of one form.

    Raises BadInput where the tokenizer lacks what the rows need: a chat template, its `{% generation %}`
    marks for assistant_only_loss, or an EOS token for plain text.
    """
    if rules.assistant_only_loss and rows:
        tokenizer = tokenizer.marked()
        _check_assistant_marks(rows[0], tokenizer)
    with renderer(len(rows)) as renders:
        encoder = _Encoder(tokenizer, rules, renders)
        for chunk in _chunks(rows):
            if chunk[0].form == "preference":
                yield from _preference_rows(chunk, encoder, rules)
            elif chunk[0].form == "prompt_completion":
                yield from _prompt_completion_rows(chunk, encoder, rules)
            else:
                yield from _language_rows(chunk, encoder, rules)


def _chunks(rows: Sequence[CanonicalRow]) -> Iterator[Sequence[CanonicalRow]]:
    """Rows whose encodings may be alive together. Raises BadInput for a row that is too long by itself."""
    start = characters = 0
    for at, row in enumerate(rows):
        own = sum(len(shown(part)) for part in (row.prompt, row.completion, row.rejected) if part is not None)
        if own > LONGEST_ROW:
            raise BadInput(
                f"row {row.row}: {own:,} characters of text; {LONGEST_ROW:,} are the most, split the row or drop it"
            )
        if at > start and (at - start == _CHUNK_ROWS or characters + own > LONGEST_ROW):
            yield rows[start:at]
            start, characters = at, 0
        characters += own
    if start < len(rows):
        yield rows[start:]


def _language_rows(rows: Sequence[CanonicalRow], encoder: _Encoder, rules: LossRules) -> Iterator[LabelledRow]:
    for encoded in encoder.whole(rows, [(None, row.completion) for row in rows]):
        mask = encoded.assistant_mask if rules.assistant_only_loss else [True] * len(encoded.input_ids)
        yield LabelledRow(_truncated(encoded.input_ids, mask, rules))


def _prompt_completion_rows(rows: Sequence[CanonicalRow], encoder: _Encoder, rules: LossRules) -> Iterator[LabelledRow]:
    prompts = encoder.prompts(rows)
    wholes = encoder.whole(rows, [(row.prompt, row.completion) for row in rows])
    for prompt, whole in zip(prompts, wholes, strict=True):
        ids = whole.input_ids
        skipped = 0 if rules.completion_only_loss is False else shared_tokens(prompt, ids)
        mask = whole.assistant_mask if rules.assistant_only_loss else [True] * len(ids)
        yield LabelledRow(_truncated(ids, [False] * skipped + mask[skipped:], rules))


def _preference_rows(rows: Sequence[CanonicalRow], encoder: _Encoder, rules: LossRules) -> Iterator[LabelledRow]:
    prompts = encoder.prompts(rows)
    chosen = encoder.whole(rows, [(row.prompt, row.completion) for row in rows])
    rejected = encoder.whole(rows, [(row.prompt, row.rejected) for row in rows])
    for prompt, *answers in zip(prompts, chosen, rejected, strict=True):
        both = [answer.input_ids for answer in answers]
        skipped = min(shared_tokens(prompt, ids) for ids in both)
        labelled = [_truncated(ids, [False] * skipped + [True] * (len(ids) - skipped), rules) for ids in both]
        yield LabelledRow(*labelled)


def shared_tokens(prompt: Sequence[int], whole: Sequence[int]) -> int:
    """Length of the common prefix, where the completion begins.

    It ends before the prompt does when tokens merge across the boundary, or when the template renders the
    prompt alone differently.
    """
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, whole, strict=False)))


def _truncated(ids: list[int], mask: list[bool], rules: LossRules) -> Labelled:
    return Labelled(ids[: rules.max_length], mask[: rules.max_length], len(ids))


@dataclass(frozen=True)
class _Encoder:
    """Rows of one form to tokens; conversations are rendered in a child."""

    tokenizer: ChatTokenizer
    rules: LossRules
    renders: Renderer

    def prompts(self, rows: Sequence[CanonicalRow]) -> list[list[int]]:
        if not rows[0].conversational:
            return self.tokenizer.encode_texts([cast(str, row.prompt) for row in rows])
        chats = self._rendered(rows, [cast(Any, row.prompt) for row in rows], add_generation_prompt=True)
        return [encoded.input_ids for encoded in self.tokenizer.encode_chats(chats)]

    def whole(self, rows: Sequence[CanonicalRow], parts: Sequence[tuple[Any, Any]]) -> list[EncodedChat]:
        """Prompt and answer of every row as one sequence; a part is text or messages, all rows alike."""
        if rows[0].conversational:
            return self.tokenizer.encode_chats(self._rendered(rows, [[*(p or []), *c] for p, c in parts]))
        eos = _eos(self.tokenizer) if self.rules.append_eos else ""
        texts = [(p or "") + c + ("" if c.endswith(eos) else eos) for p, c in parts]
        return [EncodedChat(ids, [False] * len(ids)) for ids in self.tokenizer.encode_texts(texts)]

    def _rendered(
        self, rows: Sequence[CanonicalRow], messages: Sequence[Any], add_generation_prompt: bool = False
    ) -> list[RenderedChat]:
        asked = [
            self.tokenizer.conversation(row.row, each, add_generation_prompt, row.tools, row.template_kwargs)
            for row, each in zip(rows, messages, strict=True)
        ]
        try:
            return self.renders.render(asked)
        except ChatTemplateError as fault:
            raise BadInput(str(fault)) from None


def _eos(tokenizer: ChatTokenizer) -> str:
    if not tokenizer.eos_token:
        raise BadInput("the tokenizer names no eos_token; add one to the model folder's tokenizer_config.json")
    return tokenizer.eos_token


def _check_assistant_marks(row: CanonicalRow, tokenizer: ChatTokenizer) -> None:
    if row.form == "preference":
        raise BadInput(
            "dataset.assistant_only_loss is not for pairs, of which the answers alone are trained on; set it to false"
        )
    if not row.conversational:
        raise BadInput("dataset.assistant_only_loss needs conversations, the rows are plain text; set it to false")
    if not tokenizer.marks_assistant:
        raise BadInput(
            "dataset.assistant_only_loss needs a chat template with {% generation %} marks, and this one is none of "
            "the stock templates that have a marked twin; add marks to the model's chat_template.jinja, or set it to "
            "false"
        )
