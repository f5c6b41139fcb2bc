"""Circuits as the page shows them: per traced prompt a grid of layers, heads and MLPs, and its largest parts named."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foretune.tasks.report.answers import PROMPT, cut, source_of

LISTED = 8
"""Parts named beside the picture."""
DRAWN = 150
"""Nodes with a mark; the others are too small to see."""
CELL, LEFT, TOP = 15, 40, 20
"""Pixels: of a node, of the layers' numbers, of the heads'."""
LARGEST = 6.5
"""Radius of the largest mark."""


@dataclass(frozen=True)
class Mark:
    """One node in the grid."""

    x: float
    y: float
    radius: float
    along: bool  # with the change, else against it
    chosen: bool  # one of the smallest set
    name: str
    share: float


@dataclass(frozen=True)
class Grid:
    """Layers upwards, heads to the right and the MLP behind them."""

    width: int
    height: int
    marks: Sequence[Mark]
    rows: Sequence[tuple[float, str]]  # y and label of a layer; no label where there is no room
    columns: Sequence[tuple[float, str]]
    line: str  # the picture in words


@dataclass(frozen=True)
class TracedPrompt:
    """A prompt with its trace; without `grid` where it could not be traced."""

    prompt: str
    source: str
    shared: str
    target: str
    contrast: str | None
    figures: Mapping[str, Any]
    nodes: Sequence[Mapping[str, Any]] = ()
    modules: Sequence[Mapping[str, Any]] = ()
    grid: Grid | None = None
    reason: str = ""


def circuits_view(
    told: Sequence[Mapping[str, Any]], nodes: Sequence[Mapping[str, Any]], modules: Sequence[Mapping[str, Any]]
) -> list[TracedPrompt]:
    """Of summary.json, nodes.parquet and modules.parquet of a `circuits` artefact."""
    found = []
    for number, row in enumerate(told):
        own = [node for node in nodes if node["prompt"] == number]
        weights = [each for each in modules if each["prompt"] == number]
        found.append(
            TracedPrompt(
                prompt=cut(row["prompt"], PROMPT),
                source=source_of(row),
                shared=cut(row["shared"], PROMPT),
                target=row["target"],
                contrast=row["contrast"],
                figures=row,
                nodes=_largest(own),
                modules=_largest(weights),
                grid=grid_of(own) if own else None,
                reason=row.get("reason", ""),
            )
        )
    return found


def grid_of(nodes: Sequence[Mapping[str, Any]]) -> Grid:
    """Where every node's mark stands; its area is its share of the change."""
    layers, heads = max(node["layer"] for node in nodes) + 1, max(node["head"] for node in nodes) + 1
    most = max(abs(node["share"]) for node in nodes) or 1.0
    shown = sorted(nodes, key=lambda node: (not node["chosen"], -abs(node["share"])))[:DRAWN]

    def place(node: Mapping[str, Any]) -> tuple[float, float]:
        column = {"embedding": (heads - 1) / 2, "mlp": heads + 0.5}.get(node["kind"], node["head"])
        return LEFT + CELL * (column + 0.5), TOP + CELL * (layers - 1 - node["layer"] + 0.5)

    marks = [
        Mark(
            *place(node),
            radius=round(max(0.8, LARGEST * math.sqrt(abs(node["share"]) / most)), 2),
            along=node["share"] > 0,
            chosen=node["chosen"],
            name=node["name"],
            share=node["share"],
        )
        for node in shown
    ]
    every = 1 if layers <= 12 else 5
    rows = [
        (TOP + CELL * (layers - 1 - layer + 0.5), str(layer) if layer % every == 0 else "") for layer in range(layers)
    ]
    rows.append((TOP + CELL * (layers + 0.5), "emb."))
    step = 1 if heads <= 12 else 4
    columns = [(LEFT + CELL * (head + 0.5), str(head) if head % step == 0 else "") for head in range(heads)]
    columns.append((LEFT + CELL * (heads + 1), "MLP"))
    said = ", ".join(f"{node['name']} {node['share']:+.0%}" for node in _largest(nodes)[:3])
    line = f"{layers} layers of {heads} heads and an MLP; largest: {said}"
    return Grid(LEFT + CELL * (heads + 2), TOP + CELL * (layers + 1) + 4, marks, rows, columns, line)


def _largest(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(rows, key=lambda row: -abs(row["score"]))[:LISTED]
