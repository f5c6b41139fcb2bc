"""What the fine-tune would break, by suite: as the report, the terminal, gates and result.json show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foretune.tasks.report.numbers import signed

SHOWN = ("suite", "n", "base", "predicted", "change", "low", "high", "verdict")
"""Of each suite in result.json."""
NUMBERS = ("base", "predicted", "change", "low", "high")
"""Of each suite in the summary, as in `behaviour.refusal.change`: what a gate may be set on."""
STILL = "no change measured"


@dataclass(frozen=True)
class SuiteView:
    """One suite in figures, with the items that flipped."""

    figures: Mapping[str, Any]  # as in summary.json of the artefact
    flipped: Sequence[Mapping[str, Any]]  # item, question, base, predicted, flip, answers

    @property
    def title(self) -> str:
        return str(self.figures["suite"]).replace("_", " ")


@dataclass(frozen=True)
class BehaviourView:
    """All suites, those that moved first."""

    suites: Sequence[SuiteView]
    confidence: float
    resamples: int
    seed: int

    @property
    def items(self) -> int:
        return sum(each.figures["n"] for each in self.suites)

    @property
    def moved(self) -> list[SuiteView]:
        return [each for each in self.suites if each.figures["verdict"] != STILL]

    @property
    def still(self) -> str:
        return nothing_moved(self.items, len(self.suites))


def behaviour_view(artifact: Any) -> BehaviourView:
    """The view of a `behaviour` artefact."""
    summary = artifact.json("summary.json")
    items = artifact.arrow("items.parquet").to_pylist()
    order = sorted(summary["suites"], key=lambda suite: suite["verdict"] == STILL)
    suites = [
        SuiteView(suite, [row for row in items if row["suite"] == suite["suite"] and row["flip"]]) for suite in order
    ]
    return BehaviourView(suites, summary["confidence"], summary["resamples"], summary["seed"])


def behaviour_numbers(summary: Mapping[str, Any] | None) -> dict[str, float]:
    """Flat numbers of the summary, one per suite and figure; nothing where no suite was asked."""
    suites = summary["suites"] if summary else []
    return {f"behaviour.{suite['suite']}.{name}": suite[name] for suite in suites for name in NUMBERS}


def behaviour_block(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The block `behaviour` of result.json."""
    return [{name: suite[name] for name in SHOWN} for suite in summary["suites"]]


def behaviour_lines(suites: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line per suite that moved beyond its interval, else one for all; `suites` as in `behaviour_block`."""
    moved = [suite for suite in suites if suite["verdict"] != STILL]
    if not moved:
        return [nothing_moved(sum(suite["n"] for suite in suites), len(suites))] if suites else []
    return [
        f"{suite['suite'].replace('_', ' ')} {suite['verdict']}: {suite['base']:.3g} -> {suite['predicted']:.3g} "
        f"({signed(suite['low'])} to {signed(suite['high'])}, {suite['n']} items)"
        for suite in moved
    ]


def nothing_moved(items: int, suites: int) -> str:
    return f"nothing moved beyond its interval on {items:,} items of {suites} suite{'s'[: suites != 1]}"
