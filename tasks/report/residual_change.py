"""The residual stream's own change, as the page, result.json and the terminal show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

STABLE = 0.7
"""Cosine from which the directions of the two halves of the rows are called the same."""
KINDS = {"first tokens": "mean change on the first tokens of a row", "direction": "principal direction"}


@dataclass(frozen=True)
class ResidualChangeView:
    """Directions that the stream moves along, those of the first tokens first."""

    rows: Sequence[Mapping[str, Any]]  # of directions.parquet, with name and words
    figures: Mapping[str, Any]  # summary.json

    @property
    def line(self) -> str:
        """Where, and how many move beyond noise."""
        count, beyond = len(self.rows), self.figures["beyond_noise"]
        return f"{beyond:,} of {count:,} directions at {self.figures['hook']} move beyond noise."


def residual_change_view(opened: dict[str, Any], texts: dict[str, str], lines: Any) -> ResidualChangeView:
    """Of a `residual_change` artefact."""
    held = opened["residual_change"]
    rows = held.arrow("directions.parquet").to_pylist()
    return ResidualChangeView([told(row) for row in rows], held.json("summary.json"))


def told(row: Mapping[str, Any]) -> dict[str, Any]:
    """A line with its name and its verdict in words."""
    name = KINDS[row["kind"]] + (f" {row['rank']}" if row["kind"] == "direction" else "")
    return {**row, "name": name, "words": _verdict(row)}


def _verdict(row: Mapping[str, Any]) -> str:
    if not row["beyond_noise"]:
        return "not beyond noise"
    if row["stability"] is None:
        return "moves"
    return "moves, the same way on both halves" if row["stability"] >= STABLE else "moves, its direction uncertain"


def residual_block(rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> dict[str, Any]:
    """`residual_change` of result.json."""
    return {**summary, "directions": [told(row) for row in rows]}


def residual_lines(block: Mapping[str, Any] | None) -> list[str]:
    """For the terminal: every direction beyond noise, by the tokens that it makes likelier and less likely."""
    if block is None:
        return []
    moved = [row for row in block["directions"] if row["beyond_noise"]]
    lines = [f"{row['name']}: {row['change']:.3g}{_relative(row)}, {_tokens(row)}" for row in moved]
    still = len(block["directions"]) - len(moved)
    return [*lines, *([f"{still:,} more not beyond noise"] if still else [])]


def _relative(row: Mapping[str, Any]) -> str:
    return f" ({row['relative']:.1%} of the stream's length)" if row["relative"] is not None else ""


def _tokens(row: Mapping[str, Any]) -> str:
    if not row["promoted"]:
        return "not as wide as the unembedding: no tokens"
    return f"towards {', '.join(row['promoted'][:4])}; away from {', '.join(row['suppressed'][:4])}"
