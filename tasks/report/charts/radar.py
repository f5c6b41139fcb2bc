"""The backtest's radar: six axes, the simulation against the real run's first step and against re-runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from foretune.tasks.report.charts.look import GRID, INK, LOOK, MUTED, SERIES, Chart

# The larger shape first, so that the smaller lies on top; a re-run is the yardstick and only an outline.
_RINGS = (
    ("simulation", "simulation", SERIES[0], "toself", "solid"),
    ("first_step", "first real step, drawn out", SERIES[1], "toself", "solid"),
    ("rerun", "re-run, another order", INK, "none", "dot"),
)


def radar(axes: Sequence[Mapping[str, Any]]) -> Chart:
    """Scores of 0 to 1; an axis that a method has no score on is left out of its ring."""
    traces = [trace for ring in _RINGS if (trace := _ring(axes, *ring)) is not None]
    figure = go.Figure(traces, layout={"template": LOOK, "height": 480, "showlegend": len(traces) > 1})
    names = [_name(axis) for axis in axes]
    figure.update_layout(
        polar={
            "bgcolor": "rgba(0,0,0,0)",
            "radialaxis": {
                "range": [0, 1],
                "tickvals": [0.25, 0.5, 0.75],
                "angle": 60,  # between two axes, where no line is
                "tickangle": 0,
                "tickfont": {"size": 11, "color": MUTED},
                "gridcolor": GRID,
                "linecolor": GRID,
            },
            "angularaxis": {
                "gridcolor": GRID,
                "linecolor": MUTED,
                "categoryorder": "array",
                "categoryarray": names,
                "direction": "clockwise",
                "rotation": 90,
            },
        },
        legend={"orientation": "h", "x": 0, "y": -0.12, "yanchor": "top"},
        margin={"l": 72, "r": 72, "t": 36, "b": 96},
    )
    return Chart(
        "radar",
        "Six axes",
        "The rim is a simulation that equals the real run; a ring without a corner was not measured there.",
        figure,
    )


def _ring(
    axes: Sequence[Mapping[str, Any]], method: str, name: str, color: str, fill: str, dash: str
) -> go.Scatterpolar | None:
    known = [axis for axis in axes if axis[method] is not None]
    if not known:
        return None
    closed = [*known, known[0]]
    return go.Scatterpolar(
        r=[axis[method]["mean"] for axis in closed],
        theta=[_name(axis) for axis in closed],
        customdata=[[axis[method]["low"], axis[method]["high"]] for axis in closed],
        name=name,
        fill=fill,
        opacity=0.75,
        line={"color": color, "width": 2, "dash": dash},
        hovertemplate="%{theta}: %{r:.3f} (%{customdata[0]:.3f} to %{customdata[1]:.3f})<extra>" + name + "</extra>",
    )


def _name(axis: Mapping[str, Any]) -> str:
    return axis["axis"] if axis["absent"] is None else f"{axis['axis']} (not measured)"
