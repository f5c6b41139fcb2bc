"""Chart of the run itself: when each task ran, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from foretune.tasks.report.charts.look import SERIES, Chart, bars_height, label, names_on_y, plot


def _cost(entry: Mapping[str, Any]) -> str:
    forwards = entry["forward_passes"]
    return f"{entry['seconds']:.3g} s" + (f", {forwards:.3g} forwards" if forwards else "")


def timeline(entries: Sequence[Mapping[str, Any]]) -> Chart | None:
    """Gantt chart of the passes that were computed.

    Args:
        entries: task, label, start (seconds since the run began), seconds, and forward_passes over the training rows
            (None for a pass that opened no model).
    """
    if not entries:
        return None
    ordered = sorted(entries, key=lambda entry: entry["start"])
    names = list(dict.fromkeys(entry["task"] for entry in ordered))
    traces = [
        go.Bar(
            base=[entry["start"] for entry in ordered],
            x=[entry["seconds"] for entry in ordered],
            y=[names.index(entry["task"]) for entry in ordered],
            orientation="h",
            name="computed",
            text=[_cost(entry) for entry in ordered] if len(names) == len(ordered) else None,
            textposition="outside",
            cliponaxis=False,
            marker={"color": SERIES[0], "opacity": 0.7},  # shards of one pass that ran side by side overlap
            customdata=[f"{label(entry['label'], 60)}: {_cost(entry)}" for entry in ordered],
            hovertemplate="%{customdata}<br>started at %{base:.3g} s<extra></extra>",
        )
    ]
    end = max(entry["start"] + entry["seconds"] for entry in ordered)
    figure = plot(traces, x="seconds since the run began", y="task", height=bars_height(len(names)), barmode="overlay")
    figure.update_layout(showlegend=False)
    # Room at the right for the cost that is written beside the last bar.
    figure.update_xaxes(range=[0, 1.22 * end or 1.0])
    return Chart(
        "timeline",
        "Where the time went",
        "Each bar runs from start to end of one pass of this run; forwards are forward passes over the training rows.",
        names_on_y(figure, [label(name) for name in names]),
    )
