"""Suites along the predicted path: where each leaves its band, in a table's rows, in words and in result.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SHOWN = ("suite", "n", "direction", "band", "leaves_at", "last_within", "gain_within")
"""Of each suite in result.json, with its curve."""
OF_CURVE = ("step", "change")


@dataclass(frozen=True)
class BehaviourPathView:
    """The summary of a `behaviour_path` artefact."""

    points: Sequence[Mapping[str, Any]]  # step, loss, gain_share
    suites: Sequence[Mapping[str, Any]]  # those that leave their band first
    orders: int

    @property
    def leaving(self) -> list[Mapping[str, Any]]:
        return [suite for suite in self.suites if suite.get("leaves_at") is not None]

    @property
    def departures(self) -> list[str]:
        return [departure_in_words(suite) for suite in self.leaving]


def behaviour_path_view(artifact: Any) -> BehaviourPathView:
    """The suites that were asked along the path; one of which no item was has no curve."""
    summary = artifact.json("summary.json")
    asked = [suite for suite in summary["suites"] if suite["curve"]]
    asked.sort(key=lambda suite: suite["leaves_at"] is None)
    return BehaviourPathView(summary["points"], asked, summary["orders"])


def behaviour_path_block(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The block `behaviour_path` of result.json."""
    suites = [
        {**{name: suite[name] for name in SHOWN}, "curve": [{n: p[n] for n in OF_CURVE} for p in suite["curve"]]}
        for suite in summary["suites"]
        if suite["curve"]
    ]
    return {"points": summary["points"], "suites": suites}


def behaviour_path_lines(block: Mapping[str, Any] | None) -> list[str]:
    """A line per suite that leaves its band, with the last step within it and how much of the gain is there."""
    suites = block["suites"] if block else []
    return [departure_in_words(suite) for suite in suites if suite["leaves_at"] is not None]


def departure_in_words(suite: Mapping[str, Any]) -> str:
    """When a suite leaves its band, and what stopping before that would keep."""
    name, last, gain = str(suite["suite"]).replace("_", " "), suite["last_within"], suite["gain_within"]
    left = f"{name} is beyond what noise does from step {suite['leaves_at']} on"
    if not last:
        return f"{left}, the first that was asked after the start"
    share = "" if gain is None else f", with {gain:.0%} of the gain"
    return f"{left}; at step {last} it is not{share}"
