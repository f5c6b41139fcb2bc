"""Which rows cause it: the rows that stand out on a watched suite, and what leaving them out would do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foretune.storage.display import shown
from foretune.tasks.engine.signals import Signal
from foretune.tasks.report.numbers import named_rows

SHOWN = 10
"""Rows of a suite on the page."""
EXCERPT = 170


@dataclass(frozen=True)
class CausesView:
    """One watched suite after the other, those with rows that stand out first."""

    suites: Sequence[Mapping[str, Any]]  # as in `causes_block`; of each row its text too

    @property
    def quiet(self) -> str:
        """Of the suites on which no row stands out."""
        names = [title_of(suite) for suite in self.suites if not suite["rows"]]
        return f"No row stands out on {', '.join(names)}." if names else ""


def causes_view(causes: Mapping[str, Any], effects: Mapping[str, Any] | None, texts: Mapping[str, str]) -> CausesView:
    """The view of the summaries of `causes` and `cause_effects`; `texts` by sample id."""
    suites = causes_block(causes, effects)["suites"]
    told = [
        {**suite, "title": title_of(suite), "rows": [_row(row, texts) for row in suite["rows"][:SHOWN]]}
        | {"more": max(len(suite["rows"]) - SHOWN, 0), "effect_in_words": effect_in_words(suite)}
        for suite in suites
    ]
    return CausesView(sorted(told, key=lambda suite: not suite["rows"]))


def _row(row: Mapping[str, Any], texts: Mapping[str, str]) -> dict[str, Any]:
    text = " ".join(shown(texts.get(row["sample_id"], "")[: 4 * EXCERPT]).split())
    return {**row, "text": text[:EXCERPT] + ("…" if len(text) > EXCERPT else "")}


def causes_block(causes: Mapping[str, Any], effects: Mapping[str, Any] | None) -> dict[str, Any]:
    """The block `causes` of result.json: per watched suite its rows, worst first, and what leaving all rows that stand
    out on any of them would do (None where that was not replayed)."""
    by_suite = {each["suite"]: each for each in effects["suites"]} if effects else {}
    suites = [{**suite, "effect": by_suite.get(suite["suite"])} for suite in causes["suites"]]
    return {"suites": suites, "loss": effects["loss"] if effects else None, "left_out": effects and effects["rows"]}


def causes_lines(block: Mapping[str, Any] | None) -> list[str]:
    """A line per suite on which rows stand out, and one of what leaving them out would do."""
    lines = []
    for suite in block["suites"] if block else []:
        if suite["rows"]:
            lines.append(f"{title_of(suite)}: {rows_in_words(suite)} for the worse, beyond noise")
            lines += [words] if (words := effect_in_words(suite)) else []
    return lines


def causes_command(block: Mapping[str, Any] | None, run_id: str) -> str:
    """The command that writes the dataset without those rows; "" without any."""
    suites = [suite["suite"] for suite in block["suites"] if suite["rows"]] if block else []
    words = " ".join(f"--drop-causes {suite}" for suite in suites)
    return f"foretune clean {run_id} {words} -o clean.jsonl" if suites else ""


def poison_signal(causes: Mapping[str, Any], behaviour: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """`behaviour_poison` over all suites of which one way is worse: critical where one of them gets worse on the
    predicted model, beyond its interval."""
    caused = [suite for suite in causes["suites"] if suite["rows"] and suite["better"] is not None]
    if not caused:
        return None
    worse = {each["suite"] for each in behaviour["suites"] if each["verdict"] == "worse"} if behaviour else set[str]()
    told = "; ".join(f"{title_of(suite)}: {rows_in_words(suite)}" for suite in caused)
    severity = "critical" if any(suite["suite"] in worse for suite in caused) else "warn"
    advice = f"{told} for the worse beyond noise, and do not help; read them, and leave them out"
    rows = {row["row"] for suite in caused for row in suite["rows"]}
    return Signal("behaviour_poison", severity, len(rows), 0, advice).stored()


def title_of(suite: Mapping[str, Any]) -> str:
    return str(suite["suite"]).replace("_", " ")


def rows_in_words(suite: Mapping[str, Any]) -> str:
    """`rows 3, 7 and 12 more move it`."""
    numbers = [row["row"] for row in suite["rows"]]
    return f"{named_rows(numbers)} move{'s' if len(numbers) == 1 else ''} it"


def effect_in_words(suite: Mapping[str, Any]) -> str:
    """`without them the predicted score is 0.92 instead of 0.61`; "" where no row stands out."""
    effect = suite.get("effect")
    if not suite["rows"]:
        return ""
    if not effect:
        return "the run without them was not replayed"
    more = "" if effect["measured"] else ", no more than chance or any rows do"
    return (
        f"without them the predicted {title_of(suite)} is {effect['without']:.3g} instead of {effect['predicted']:.3g} "
        f"({effect['unit']}; base {effect['base']:.3g}, without as many other rows {effect['control']:.3g}){more}"
    )
