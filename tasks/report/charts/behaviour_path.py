"""The chart of behaviour suites along the path: the change of each since the base, by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from foretune.tasks.report.charts.look import HARMS, MUTED, Chart, hover, label, plot


def behaviour_path(suites: Sequence[Mapping[str, Any]]) -> Chart | None:
    """A line per suite whose scores are shares or probabilities; those that leave their band stand out."""
    shown = [suite for suite in suites if not suite["unit"].startswith("nats")]
    if not shown:
        return None
    traces = [
        go.Scatter(
            x=[point["step"] for point in suite["curve"]],
            y=[point["change"] for point in suite["curve"]],
            name=label(suite["suite"].replace("_", " "), 40),
            mode="lines+markers",
            line={
                "color": MUTED if suite["leaves_at"] is None else HARMS,
                "width": 1 if suite["leaves_at"] is None else 3,
            },
            marker={"size": 7},
            showlegend=suite["leaves_at"] is not None,
            hovertemplate=f"{hover(suite['suite'])}<br>step %{{x}}: %{{y:+.3g}}",
        )
        for suite in shown
    ]
    return Chart(
        "behaviour-path",
        "Suites along the path",
        "The change of each suite's mean score since the base, on the items that were asked on the way. Marks are "
        "measured, between them nothing is claimed; thick lines leave their band and stay outside of it.",
        plot(traces, x="optimizer step", y="change of the score", height=320),
    )
