"""What is supervised, as the page shows it: findings, and rows whose tokens are marked by what a trainer does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

from foretune.storage.display import shown

if TYPE_CHECKING:
    from markupsafe import Markup

LARGEST = 200_000
"""Bytes of HTML that the shown rows may take: the rows after that are counted, not shown."""
LINKED = 12
"""Rows of a finding that are linked."""
ELEMENTS = {"trained": "u", "masked": "span", "cut_off": "s"}
QUESTIONS = {
    "doubled_bos": "Do rows begin with one BOS token?",
    "template_in_text": "Is the text free of a template's marks?",
    "template_in_messages": "Are the messages free of a template's marks?",
    "eos_not_trained": "Do answers teach where to stop?",
    "end_is_not_eos": "Do answers end where the model stops?",
    "template_drops_content": "Does the template write every message?",
    "template_strips_thinking": "Does the template keep the thoughts?",
    "template_drops_tool_calls": "Does the template write the tool calls?",
    "template_changes_earlier_turns": "Does the template keep earlier turns as they were?",
}
"""How a signal of this section is asked; its name is that of its rule, by which its rows are found."""


def words_asked(name: str) -> tuple[str, str, str]:
    """The question, the unit and what passes, of a signal that has no question of its own in the verdict."""
    if name in QUESTIONS:
        return QUESTIONS[name], "rows", "no row"
    return name.replace("_", " ") + "?", "", ""


@dataclass(frozen=True)
class ShownSequence:
    """A token sequence of a row, to be read."""

    row: int
    name: str  # "" for a row that is one sequence, else chosen or rejected
    trained: int
    masked: int
    cut_off: int
    tokens: Sequence[Mapping[str, Any]]  # position, text, state, special


@dataclass(frozen=True)
class SupervisionView:
    findings: Sequence[Mapping[str, Any]]  # rule, severity, says, remedy, every_row, rows
    sequences: Sequence[ShownSequence]
    left_out: int  # rows that the page has no room for
    summary: Mapping[str, Any] = field(default_factory=dict)


def supervision_view(
    findings: Sequence[Mapping[str, Any]],
    sequences: Sequence[Mapping[str, Any]],
    tokens: Iterable[Mapping[str, Any]],
    summary: Mapping[str, Any],
) -> SupervisionView:
    """The view of the artefact's tables; `sequences` and `tokens` in their stored order."""
    by_sequence = {key: list(group) for key, group in groupby(tokens, key=lambda t: (t["row"], t["sequence"]))}
    made: list[ShownSequence] = []
    left, room = set(), LARGEST
    for each in sequences:
        held = by_sequence.get((each["row"], each["sequence"]), [])
        room -= len(token_html(held).encode())
        if room < 0 or each["row"] in left:
            left.add(each["row"])
            continue
        name = "" if each["sequence"] == "row" else each["sequence"]
        made.append(ShownSequence(each["row"], name, each["trained"], each["masked"], each["cut_off"], held))
    return SupervisionView(findings, [each for each in made if each.row not in left], len(left), summary)


def token_html(tokens: Sequence[Mapping[str, Any]]) -> Markup:
    """Tokens as escaped text: underlined where trained, struck out where cut off, special ones in a box."""
    from markupsafe import Markup, escape

    parts: list[str] = []
    for state, run in groupby(_with_gaps(tokens), key=lambda token: token["state"]):
        inside = []
        for special, group in groupby(run, key=_alone):
            text = "".join(token["text"] for token in group)
            marked = str(escape(shown(text))).replace("\n", "<i>↵</i>\n")
            inside.append(marked if special is None else f"<em>{marked}</em>")
        element = ELEMENTS.get(state)
        parts.append("".join(inside) if element is None else f"<{element}>{''.join(inside)}</{element}>")
    return Markup("".join(parts))


def _alone(token: Mapping[str, Any]) -> int | None:
    """The position of a special token, which is marked by itself; None for all others."""
    return token["position"] if token["special"] else None


def _with_gaps(tokens: Sequence[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    """The tokens, and between two that are no neighbours how many are not shown."""
    before = -1
    for token in tokens:
        missing = token["position"] - before - 1
        if missing > 0:
            yield {"state": "", "special": False, "position": -1, "text": f" …({missing:,} tokens not shown)… "}
        before = token["position"]
        yield token
