"""What stands in a dataset and is not read: said once, by name, with what it is known to mean to other trainers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from foretune.storage.datasets import KNOWN, dataset_at
from foretune.storage.display import one_line
from foretune.storage.parts import VALIDATION, folder_and_pattern, other_splits, split_of
from foretune.tasks.engine.signals import Signal
from foretune.tasks.samples.forms import ColumnNames, form_of
from foretune.tasks.samples.messages import ROLES

if TYPE_CHECKING:
    from foretune.tasks.samples.table import DatasetSettings

SHOWN = 60  # characters of a sample value
NAMED = 5  # columns in the signal's advice; summary.json has all

MAP_IT = "map it with dataset.columns"
MEANINGS = {
    **dict.fromkeys(("context", "input", "passage", "document"), f"part of the prompt elsewhere; {MAP_IT}.context"),
    **dict.fromkeys(("history", "conversation_history"), f"earlier turns elsewhere; {MAP_IT}.history"),
    **dict.fromkeys(
        ("system", "system_prompt"), f"the system turn elsewhere; {MAP_IT}.system, or write it as a message"
    ),
    **dict.fromkeys(("question", "instruction", "query"), f"the prompt elsewhere; {MAP_IT}.prompt"),
    **dict.fromkeys(("tools", "functions"), "the tools that a template lists; name the column tools"),
    **dict.fromkeys(
        ("weight", "weights", "sample_weight", "loss_weight", "train", "trainable", "loss", "mask"),
        "masks or weighs the loss elsewhere, here all rows and turns count in full; drop what must not be trained",
    ),
    **dict.fromkeys(
        ("image", "images", "video", "videos", "audio", "audios"), "the model would see it; only text can be simulated"
    ),
}
"""Columns that other trainers read: a row means something else without them."""

KTO = (
    "with answers that are wanted and unwanted these are KTO rows, whose objective is not simulated: rows with false "
    "would be trained on as good answers; drop them, or make pairs of chosen and rejected"
)
UNPAIRED = ("prompt+completion", "messages", "conversations")
"""Forms in which a label of 0 and 1 says whether the answer is wanted; elsewhere it may be a class."""
KEEPS = ("weight", "loss_weight", "train", "train_on_turn", "trainable", "loss", "loss_mask")
LEAVES_OUT = ("mask", "masked", "ignore_loss")
OF_A_TURN = (*KEEPS, *LEAVES_OUT, "train_detail")
"""Keys of a message that mask it, or a part of it, elsewhere: where they are false, where they are true."""
OF_TEMPLATES = ("system", "developer", "user", "assistant", "tool", "ipython", "function")
"""Roles that some published chat template knows; of the others none was trained on."""


@dataclass(frozen=True)
class Unread:
    """A column, or a key of messages, that no sample holds."""

    column: str
    rows: int  # in which it holds something; of a message's key, the turns
    first_row: int  # from 0
    value: str  # its first value, cut
    meaning: str | None  # to other trainers; None where nothing is known


def unread_columns(
    rows: Sequence[Mapping[str, Any]], columns: ColumnNames | None = None, group_column: str | None = None
) -> list[Unread]:
    """In the order of their first appearance, those with a known meaning first. The rows have been read before."""
    forms: dict[str, None] = {}
    mapped = columns is not None and bool(columns.role or columns.speakers)
    found: dict[str, list[Any]] = {}  # column -> [rows, first row, first value]
    for number, row in enumerate(rows):
        form = form_of(row, columns)
        forms.setdefault(form.name, None)
        own = set(form.reads) | set((columns or ColumnNames()).given().values()) | {group_column}
        for column, value in _values(row, own, form.messages, mapped):
            entry = found.setdefault(column, [0, number, value])
            entry[0] += 1
    unread = [
        Unread(column, count, first, one_line(repr(value) if not isinstance(value, str) else value, SHOWN), meaning)
        for column, (count, first, value) in found.items()
        for meaning in (_meaning(column, value, next(iter(forms))),)
    ]
    return sorted(unread, key=lambda each: each.meaning is None)


def unread_signals(unread: Sequence[Unread]) -> list[dict[str, Any]]:
    """`unread_columns`, critical where one of them is known to matter."""
    if not unread:
        return []
    known = [each for each in unread if each.meaning]
    named = "; ".join(map(_line, (known or unread)[:NAMED]))
    more = len(known or unread) - NAMED
    advice = f"not read: {named}{f'; and {more} more' if more > 0 else ''}"
    severity = "critical" if known else "info"
    return [Signal("unread_columns", severity, len(unread), 0, advice).stored()]


def unread_splits(settings: DatasetSettings) -> list[str]:
    """Names of the splits beside the training rows that nothing of these settings reads."""
    others, held = other_splits(settings.path, KNOWN), settings.heldout.path
    folder = folder_and_pattern(settings.path)[0].rstrip("/") + "/"
    if others and held is not None and f"{held}/".startswith(folder):
        read = split_of(dataset_at(held, VALIDATION), folder)
        return [name for name in others if name != read]
    return others


def splits_line(splits: Sequence[str]) -> str:
    """What a folder or a glob holds beside the training rows."""
    return f"the dataset holds {' and '.join(splits)} rows too, which are not read"


def splits_signals(splits: Sequence[str]) -> list[dict[str, Any]]:
    """`splits_not_read`, where there are any."""
    if not splits:
        return []
    advice = (
        f"{splits_line(splits)}: to train on them name a file or a glob, to predict the loss on them set "
        "dataset.heldout.path to the same folder"
    )
    return [Signal("splits_not_read", "info", len(splits), 0, advice).stored()]


def _line(unread: Unread) -> str:
    things = "turns" if "[]" in unread.column else "rows"
    name = unread.column or "a column without a name"
    line = f"{name} ({unread.rows:,} {things}, row {unread.first_row}: {unread.value})"
    return f"{line}: {unread.meaning}" if unread.meaning else line


def as_records(unread: Sequence[Unread]) -> list[dict[str, Any]]:
    """For summary.json."""
    return [asdict(each) for each in unread]


def _values(
    row: Mapping[str, Any], own: set[str | None], messages: Sequence[str], mapped: bool
) -> Iterator[tuple[str, Any]]:
    """(name, value) of what the row holds and the form does not read."""
    for column, value in row.items():
        if column not in own and value not in (None, "", [], {}):
            yield column, value
    for column in messages:
        turns = row.get(column)
        for turn in turns if isinstance(turns, list) else ():
            for key in OF_A_TURN:
                # A turn that is trained on says what happens here; only the others are not what they say.
                if isinstance(turn, Mapping) and key in turn and _masks(key, turn[key]):
                    yield f"{column}[].{key}", turn[key]
            if isinstance(turn, Mapping) and "from" not in turn and not mapped:
                if str(turn.get("role")).lower() in ROLES and turn["role"] not in OF_TEMPLATES:
                    yield f"{column}[].role", turn["role"]
                if turn.get("function_call"):
                    yield f"{column}[].function_call", turn["function_call"]


def _masks(key: str, value: Any) -> bool:
    if key == "train_detail":  # axolotl's: parts of a turn, each with whether it is trained on
        return bool(value)
    if key in LEAVES_OUT:
        return bool(value)
    return value is not None and (value is False or value == 0 or value not in (True, 1))


def _meaning(column: str, value: Any, form: str) -> str | None:
    if column.endswith("[].role"):
        return "a role that no published chat template knows; map it with dataset.columns.speakers"
    if column.endswith("[].function_call"):
        return "chat templates do not write it; make it tool_calls"
    if "[]" in column:
        return "masks turns elsewhere, here every turn counts in full"
    name = str(column).lower()
    said = isinstance(value, bool) or str(value).lower() in ("true", "false")
    if name == "kto_tag" or (name in ("label", "labels", "desirable", "is_desirable") and said and form != "text"):
        return KTO
    if name in ("label", "labels") and value in (0, 1) and form in UNPAIRED:
        return KTO
    return MEANINGS.get(name)
