"""The chart of behaviour suites: base and predicted model, and the interval of the change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from foretune.tasks.report.charts.look import (
    HARMS,
    HELPS,
    MUTED,
    NEUTRAL,
    SERIES,
    Chart,
    bars_height,
    hover,
    label,
    names_on_y,
    plot,
)

COLOURS = {"better": HELPS, "worse": HARMS, "changed": SERIES[3]}


def behaviour_changes(suites: Sequence[Mapping[str, Any]]) -> Chart | None:
    """A dumbbell per suite whose scores are shares or probabilities; suites of another unit have their interval in the
    table alone."""
    shown = [suite for suite in suites if not suite["unit"].startswith("nats")]
    if not shown:
        return None
    places = list(range(len(shown)))
    details = [
        f"{hover(suite['measures'])}<br>{suite['n']} items, change {suite['change']:+.3g} "
        f"({suite['low']:+.3g} to {suite['high']:+.3g})<br>{hover(suite['verdict'])}"
        for suite in shown
    ]
    traces = [_intervals(shown, places)]
    for column, name, symbol in (("base", "base", "circle-open"), ("predicted", "predicted model", "circle")):
        traces.append(
            go.Scatter(
                x=[suite[column] for suite in shown],
                y=places,
                name=name,
                mode="markers",
                marker={
                    "color": [COLOURS.get(suite["verdict"], NEUTRAL) for suite in shown],
                    "size": 11,
                    "symbol": symbol,
                    "line": {"width": 2, "color": [COLOURS.get(suite["verdict"], NEUTRAL) for suite in shown]},
                },
                customdata=details,
                hovertemplate="%{x:.3g}<br>%{customdata}",
            )
        )
    figure = plot(traces, x="share of items, or mean probability", y="suite", height=bars_height(len(shown)) + 30)
    return Chart(
        "behaviour-changes",
        "Each suite before and after",
        "Open: base, filled: predicted model; the line is the interval of the change, set at the base. A line that "
        "reaches the open mark means that no change was measured.",
        names_on_y(figure, [label(suite["suite"].replace("_", " "), 24) for suite in shown]),
    )


def _intervals(shown: Sequence[Mapping[str, Any]], places: Sequence[int]) -> go.Scatter:
    xs: list[float | None] = []
    ys: list[float | None] = []
    for place, suite in zip(places, shown, strict=True):
        xs += [suite["base"] + suite["low"], suite["base"] + suite["high"], None]
        ys += [place, place, None]
    line = {"color": MUTED, "width": 4}
    return go.Scatter(x=xs, y=ys, mode="lines", line=line, opacity=0.5, name="interval of the change", hoverinfo="skip")
