"""Chart of the run itself: when each task ran, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from foretune.tasks.report.charts.look import NEUTRAL, SERIES, Chart, bars_height, label, names_on_y, plot


def _cost(entry: Mapping[str, Any]) -> str:
    return "cached" if entry.get("cached") else f"{entry['seconds']:.3g} s"


def timeline(entries: Sequence[Mapping[str, Any]]) -> Chart | None:
    """Gantt chart of the passes.

    Args:
        entries: task, start (seconds since the run began), seconds and cached.
    """
    if not entries:
        return None
    ordered = sorted(entries, key=lambda entry: entry["start"])
    names = list(dict.fromkeys(entry["task"] for entry in ordered))
    traces = []
    for cached, wording, color in ((False, "run", SERIES[0]), (True, "cached", NEUTRAL)):
        part = [entry for entry in ordered if bool(entry.get("cached")) is cached]
        if not part:
            continue
        traces.append(
            go.Bar(
                base=[entry["start"] for entry in part],
                x=[entry["seconds"] for entry in part],
                y=[names.index(entry["task"]) for entry in part],
                orientation="h",
                name=wording,
                text=[_cost(entry) for entry in part] if len(names) == len(ordered) else None,
                textposition="outside",
                cliponaxis=False,
                marker={"color": color, "pattern": {"shape": "/" if cached else ""}},
                customdata=[f"{label(entry['task'], 60)}: {_cost(entry)}" for entry in part],
                hovertemplate="%{customdata}<br>started at %{base:.3g} s<extra></extra>",
            )
        )
    end = max(entry["start"] + entry["seconds"] for entry in ordered)
    figure = plot(traces, x="seconds since the run began", y="task", height=bars_height(len(names)), barmode="overlay")
    figure.update_layout(showlegend=len(traces) > 1)
    # Room at the right for the cost that is written beside the last bar.
    figure.update_xaxes(range=[0, 1.22 * end or 1.0])
    return Chart(
        "timeline",
        "Where the time went",
        "Each bar runs from start to end of one pass.",
        names_on_y(figure, [label(name) for name in names]),
    )
