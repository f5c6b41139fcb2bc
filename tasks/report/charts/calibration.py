"""The reliability diagram: how often the likeliest token comes, by how likely the model calls it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from foretune.tasks.report.charts.look import MUTED, SERIES, Chart, plot

if TYPE_CHECKING:
    from pandas import DataFrame

_SIDES = (("base", "base", SERIES[6], "circle-open"), ("new", "predicted checkpoint", SERIES[0], "circle"))


def reliability(bins: DataFrame) -> Chart | None:
    """Accuracy by confidence on the held-out rows, before and after.

    Args:
        bins: columns set, model, tokens, confidence, accuracy; a bin without tokens has no row.
    """
    held = bins[bins["set"] == "heldout"]
    if held.empty:
        return None
    line = {"color": MUTED, "width": 1.5, "dash": "dash"}
    traces = [go.Scatter(x=[0, 1], y=[0, 1], mode="lines", name="calibrated", line=line, hoverinfo="skip")]
    most = held["tokens"].max()
    for model, name, color, symbol in _SIDES:
        part = held[held["model"] == model].sort_values("confidence")
        traces.append(
            go.Scatter(
                x=part["confidence"],
                y=part["accuracy"],
                customdata=part["tokens"],
                name=name,
                mode="lines+markers",
                line={"color": color, "width": 1.5},
                marker={"symbol": symbol, "size": 6 + 12 * (part["tokens"] / most) ** 0.5, "color": color},
                hovertemplate="confidence %{x:.3f}, came true %{y:.3f} (%{customdata:,} tokens)",
            )
        )
    figure = plot(traces, x="confidence: probability of the likeliest token", y="how often it came", height=340)
    figure.update_xaxes(range=[0, 1]).update_yaxes(range=[0, 1])
    return Chart(
        "reliability",
        "Reliability before and after",
        "On the dashed line confidence is as high as accuracy; below it the model is too sure. Larger marks hold more "
        "tokens; both marks and the calibration error are over held-out label tokens.",
        figure,
    )
