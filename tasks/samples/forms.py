"""The forms a dataset row can have, and the one canonical form that every later step reads.

The forms that TRL knows mean exactly what TRL makes of them, but for ShareGPT's speakers: "human" and "gpt"
become user and assistant, where TRL would keep names that no model was trained on. `instruction`+`output` and
`question`+`answer` are no TRL types: they become a user turn and an assistant turn where the tokenizer has a
chat template, and plain text where it has none.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from foretune.storage.errors import BadInput
from foretune.tasks.samples.column_names import ColumnNames
from foretune.tasks.samples.function_calls import wrapped_tools
from foretune.tasks.samples.messages import Part, read_json, read_messages, read_part, read_text, shown

Form = Literal["text", "messages", "prompt_completion", "preference"]


@dataclass(frozen=True)
class CanonicalRow:
    """One dataset row; a part is plain text or a list of messages with `role` and `content`."""

    row: int  # position in the file, from 0
    form: Form
    prompt: Part | None
    completion: Part  # the text, the messages, the completion, or the chosen answer
    rejected: Part | None = None
    tools: list[Any] | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    adaptable: bool = False  # no TRL type: plain text is as good as a conversation

    @property
    def conversational(self) -> bool:
        return isinstance(self.completion, list)

    def content(self) -> dict[str, Any]:
        """The row's text, without its place in the file: the part that the sample id is made of."""
        content = {
            "form": self.form,
            "prompt": self.prompt,
            "completion": self.completion,
            "rejected": self.rejected,
            "tools": self.tools,
            "template_kwargs": self.template_kwargs or None,
        }
        return {name: value for name, value in content.items() if value is not None}


def canonical_rows(rows: Sequence[Mapping[str, Any]], columns: ColumnNames | None = None) -> list[CanonicalRow]:
    """Every row in canonical form.

    Raises BadInput, naming the row (from 0), for unknown columns, a row of another form than the first, and
    values that are neither text nor messages.
    """
    columns = columns or ColumnNames()
    names = columns.given()
    known = _forms_with(names)
    canonical: list[CanonicalRow] = []
    first: KnownForm | None = None
    for number, row in enumerate(rows):
        renamed = _renamed(row, names, number)
        form = next((form for form in known if form.fits(renamed)), None)
        if form is None:
            raise BadInput(_unknown_columns(number, renamed, known, first))
        if first is not None and form is not first:
            raise BadInput(
                f"row {number} has the form {form.name}, the rows before it {first.name}; "
                "a dataset has one form: split the file"
            )
        first = form
        canonical.append(_read_row(form, _respoken(renamed, form, columns, number), number))
        if canonical[-1].conversational != canonical[0].conversational:
            now, before = ("messages", "text") if canonical[-1].conversational else ("text", "messages")
            raise BadInput(
                f"row {number}: its columns hold {now}, those of row 0 {before}; a dataset has one form: split the file"
            )
    return canonical


def form_of(row: Mapping[str, Any], columns: ColumnNames | None = None) -> KnownForm:
    """The form of a row that `canonical_rows` has read."""
    names = (columns or ColumnNames()).given()
    renamed = _renamed(row, names, 0)
    return next(form for form in _forms_with(names) if form.fits(renamed))


def as_plain_text(row: CanonicalRow) -> CanonicalRow:
    """An adaptable conversation as text, an empty line between turns, for a tokenizer without a template."""
    turns: Any = row.prompt  # messages, in an adaptable row
    answer: Any = row.completion[0]
    return replace(row, prompt="".join(turn["content"] + "\n\n" for turn in turns), completion=answer["content"])


def shown_texts(row: CanonicalRow) -> tuple[str, str, str | None]:
    """(prompt, completion, rejected) as a person reads them, without a chat template's marks.

    A `messages` row is cut before its last assistant turn; the loss may cover more than that.
    """
    if row.form != "messages":
        rejected = None if row.rejected is None else shown(row.rejected)
        return shown(row.prompt or ""), shown(row.completion), rejected
    messages: Any = row.completion
    turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    cut = turns[-1] if turns else 0
    return shown(row.completion[:cut]), shown(row.completion[cut:]), None


@dataclass(frozen=True)
class KnownForm:
    """A form as users know it: the columns it needs, and how they are read."""

    name: str
    required: tuple[str, ...]
    read: Callable[[Mapping[str, Any], int], dict[str, Any]]
    optional: tuple[str, ...] = ()
    messages: tuple[str, ...] = ()  # columns that hold lists of messages

    @property
    def reads(self) -> tuple[str, ...]:
        """Every column that the form reads."""
        return (*self.required, *self.optional, *ALWAYS_READ)

    def fits(self, row: Mapping[str, Any]) -> bool:
        return all(row.get(column) is not None for column in self.required)


def _read_row(form: KnownForm, row: Mapping[str, Any], number: int) -> CanonicalRow:
    kwargs = read_json(row.get("chat_template_kwargs"), number, "chat_template_kwargs", dict) or {}
    tools = read_json(row.get("tools"), number, "tools", list)
    tools = wrapped_tools(tools, [row.get(column) for column in form.messages])
    read = CanonicalRow(row=number, tools=tools, template_kwargs=kwargs, **form.read(row, number))
    if read.form != "messages" and isinstance(read.prompt or "", str) != isinstance(read.completion, str):
        raise BadInput(f"row {number}: prompt and answer must both be text or both be messages; convert one")
    for part in (read.prompt, read.completion, read.rejected):
        if part == [] and read.conversational:
            raise BadInput(f"row {number}: a conversation needs a message before the answer and one in it")
    return read


def _read_text(row: Mapping[str, Any], number: int) -> dict[str, Any]:
    return {"form": "text", "prompt": None, "completion": read_text(row["text"], number, "text")}


def _read_messages(row: Mapping[str, Any], number: int) -> dict[str, Any]:
    column = "messages" if row.get("messages") is not None else "conversations"
    messages = read_messages(read_json(row[column], number, column, list), number, column)
    system = row.get("system") if column == "conversations" else None
    if system and not (messages and messages[0]["role"] == "system"):
        messages.insert(0, {"role": "system", "content": read_text(system, number, "system")})
    return {"form": "messages", "prompt": None, "completion": messages}


def _read_prompt_completion(row: Mapping[str, Any], number: int) -> dict[str, Any]:
    prompt, completion = (read_part(row[column], number, column) for column in ("prompt", "completion"))
    return {"form": "prompt_completion", "prompt": prompt, "completion": completion}


def _read_preference(row: Mapping[str, Any], number: int) -> dict[str, Any]:
    prompt = None if row.get("prompt") is None else read_part(row["prompt"], number, "prompt")
    chosen, rejected = (read_part(row[column], number, column) for column in ("chosen", "rejected"))
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise BadInput(f"row {number}: chosen and rejected must both be text or both be messages; convert one")
    # A text prompt beside whole conversations repeats their first turn, as in UltraFeedback.
    if prompt is None or (isinstance(prompt, str) and isinstance(chosen, list)):
        shared = shared_prefix(chosen, rejected)
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    return {"form": "preference", "prompt": prompt, "completion": chosen, "rejected": rejected}


def shared_prefix(chosen: Part, rejected: Part) -> int:
    """Length of the prompt that two answers share, in characters or messages.

    As `trl.data_utils.extract_prompt`: a space before the first difference belongs to the answers, and of two
    answers of which one begins the other at least the last item of the shorter stays an answer.
    """
    shorter = min(len(chosen), len(rejected))
    for position in range(shorter):
        if chosen[position] != rejected[position]:
            return position - 1 if position and chosen[position - 1] == " " else position
    return max(shorter - 1, 0)


def asked_text(question: str, row: Mapping[str, Any], number: int) -> str:
    """As Alpaca, Dolly and SQuAD's readers put it: an input after the instruction, a passage before its question."""
    prompt = read_text(row[question], number, question)
    for column in ("input", "context"):
        if column != question and row.get(column) not in (None, ""):
            parts = [prompt, read_text(row[column], number, column)]
            prompt = "\n\n".join(reversed(parts) if question == "question" else parts)
    return prompt


def _read_turns(question: str, answer: str, row: Mapping[str, Any], number: int) -> dict[str, Any]:
    prompt = asked_text(question, row, number)
    system = row.get("system")
    opening = [{"role": "system", "content": read_text(system, number, "system")}] if system else []
    return {
        "form": "prompt_completion",
        "prompt": [*opening, *_history(row.get("history"), number), {"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": read_text(row[answer], number, answer)}],
        "adaptable": True,
    }


def _history(value: Any, number: int) -> list[dict[str, Any]]:
    """Earlier turns: pairs of a prompt and an answer, or messages."""
    turns = read_json(value or None, number, "history", list) or []
    if all(isinstance(turn, Mapping) for turn in turns):
        return read_messages(turns, number, "history")
    if not all(isinstance(turn, list | tuple) and len(turn) == 2 for turn in turns):
        raise BadInput(f"row {number}: history holds something other than pairs of prompt and answer; write pairs")
    roles = ("user", "assistant")
    return [
        {"role": role, "content": read_text(text, number, "history")}
        for turn in turns
        for role, text in zip(roles, turn, strict=True)
    ]


def _with_opening(read: Callable[[Mapping[str, Any], int], dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """A reader of prompts that puts a system turn and earlier turns before them; text becomes turns."""

    def opened(row: Mapping[str, Any], number: int) -> dict[str, Any]:
        found = read(row, number)
        system = row.get("system")
        opening = [{"role": "system", "content": read_text(system, number, "system")}] if system else []
        opening += _history(row.get("history"), number)
        asked = "completion" if found["prompt"] is None else "prompt"
        if isinstance(found["prompt"], str):
            found["prompt"] = [{"role": "user", "content": found["prompt"]}]
            for part in ("completion", "rejected"):
                if isinstance(found.get(part), str):
                    found[part] = [{"role": "assistant", "content": found[part]}]
        if opening and found[asked] and found[asked][0]["role"] == "system":
            opening = opening[1:] if system else opening
        return found | {asked: [*opening, *found[asked]]}

    return opened


def _instruction_form(question: str, answer: str) -> KnownForm:
    read = functools.partial(_read_turns, question, answer)
    optional = tuple(name for name in ("input", "context", "history", "system") if name != question)
    return KnownForm(f"{question}+{answer}", (question, answer), read, optional)


ALWAYS_READ = ("tools", "chat_template_kwargs")
_PAIR = ("prompt", "chosen", "rejected")

# In TRL's order of precedence: an Alpaca file that also has a `text` column is trained on that column.
KNOWN_FORMS = (
    KnownForm("prompt+chosen+rejected", _PAIR, _read_preference, messages=_PAIR),
    KnownForm("chosen+rejected", ("chosen", "rejected"), _read_preference, messages=("chosen", "rejected")),
    KnownForm(
        "prompt+completion", ("prompt", "completion"), _read_prompt_completion, messages=("prompt", "completion")
    ),
    KnownForm("messages", ("messages",), _read_messages, messages=("messages",)),
    KnownForm("conversations", ("conversations",), _read_messages, ("system",), messages=("conversations",)),
    KnownForm("text", ("text",), _read_text),
    _instruction_form("instruction", "output"),
    _instruction_form("instruction", "response"),
    _instruction_form("question", "answer"),
    _instruction_form("query", "response"),
    _instruction_form("prompt", "response"),
    _instruction_form("input", "output"),
)


# TRL reads no system turn and no history beside these: here they are read where dataset.columns names them.
OPENED_FORMS = tuple(
    KnownForm(form.name, form.required, _with_opening(form.read), ("system", "history"), form.messages)
    for form in KNOWN_FORMS
    if form.required in (("prompt", "chosen", "rejected"), ("prompt", "completion"), ("messages",))
)


def _forms_with(names: Mapping[str, str]) -> list[KnownForm]:
    """Forms that read every column of `dataset.columns`. BadInput where there is none."""
    forms = (*KNOWN_FORMS, *OPENED_FORMS)
    known = [form for form in forms if set(names) <= {*form.required, *form.optional, *ALWAYS_READ}]
    if not known:
        raise BadInput(f"dataset.columns: no form has the columns {', '.join(names)}; known forms: {_listing()}")
    return known


def _respoken(row: Mapping[str, Any], form: KnownForm, columns: ColumnNames, number: int) -> Mapping[str, Any]:
    """The row with the messages of its columns under the names that every later step knows."""
    if not (columns.role or columns.content or columns.speakers):
        return row
    changed = {}
    for column in form.messages:
        value = row.get(column)
        if isinstance(value, str) and column in ("messages", "conversations"):
            value = read_json(value, number, column, list)
        if isinstance(value, list):
            changed[column] = [columns.message(each) for each in value]
        elif isinstance(value, Mapping):
            changed[column] = columns.message(value)
    return {**row, **changed}


def _renamed(row: Mapping[str, Any], names: Mapping[str, str], number: int) -> Mapping[str, Any]:
    if not names:
        return row
    missing = [column for column in names.values() if column not in row]
    if missing:
        nearest = difflib.get_close_matches(missing[0], list(row), n=1, cutoff=0.0)
        raise BadInput(
            f"row {number} has no column {missing[0]}, which dataset.columns names; "
            f"the nearest is {nearest[0] if nearest else 'none, the row is empty'}"
        )
    kept = {column: value for column, value in row.items() if column not in names.values()}
    return {**kept, **{known: row[column] for known, column in names.items()}}


def _listing() -> str:
    return " | ".join(form.name for form in KNOWN_FORMS)


def _unknown_columns(number: int, row: Mapping[str, Any], known: Sequence[KnownForm], first: KnownForm | None) -> str:
    filled = [column for column, value in row.items() if value is not None]
    found = f"row {number} has the columns {', '.join(map(str, filled)) or '(none)'}"
    if first is not None:
        lacking = ", ".join(column for column in first.required if column not in filled)
        return f"{found}; the rows before it are {first.name} and this one has no {lacking}: fill or drop it"
    nearest, missing = min(((form, _missing(form, filled)) for form in known), key=lambda pair: _cost(*pair))
    advice = "; ".join(
        f"no {column}" + (f", is it {similar}?" if similar else "") for column, similar in missing.items()
    )
    return (
        f"{found}, which is no known form; known forms: {_listing()}; "
        f"the nearest is {nearest.name} ({advice}): rename the columns or set dataset.columns"
    )


def _missing(form: KnownForm, filled: Sequence[str]) -> dict[str, str | None]:
    lacking = [column for column in form.required if column not in filled]
    spare = [str(column) for column in filled if column not in form.required]
    return {column: next(iter(difflib.get_close_matches(column, spare, n=1)), None) for column in lacking}


def _cost(form: KnownForm, missing: Mapping[str, str | None]) -> tuple[float, int]:
    unmatched = sum(0.4 if similar else 1.0 for similar in missing.values())
    return unmatched / len(form.required), -len(form.required)
