"""Charts of losses and gradients: by batch, along the predicted path, and on the probes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from foretune.tasks.report.charts.look import HARMS, MUTED, SERIES, Chart, bars_height, hover, label, names_on_y, plot

if TYPE_CHECKING:
    from pandas import DataFrame

# A dot on every batch of a longer run hides the line.
_MAX_MARKED = 150


def gradient_norms(steps: DataFrame, spike: float | None) -> Chart | None:
    """Gradient norms of each batch at the base weights.

    Args:
        steps: columns step, loss, mean_grad_norm, max_grad_norm.
        spike: norm above which the mean of the largest norms raises a warning.
    """
    if steps.empty:
        return None
    shown = (
        ("mean_grad_norm", "mean over modules", SERIES[0]),
        ("max_grad_norm", "largest module", SERIES[3]),
    )
    traces = [
        go.Scatter(
            x=steps["step"],
            y=steps[column],
            name=name,
            mode="lines+markers" if len(steps) <= _MAX_MARKED else "lines",
            customdata=steps["loss"],
            line={"color": color, "width": 2},
            marker={"size": 6},
            hovertemplate="%{y:.3g} (batch loss %{customdata:.3f})",
        )
        for column, name, color in shown
    ]
    if spike and spike < 10 * steps["max_grad_norm"].max():
        ends = [steps["step"].min(), steps["step"].max()]
        dashes = {"color": HARMS, "width": 1.5, "dash": "dash"}
        line = go.Scatter(x=ends, y=[spike, spike], name="spike warning", mode="lines", line=dashes, hoverinfo="skip")
        traces.append(line)
    norms = steps[["mean_grad_norm", "max_grad_norm"]]
    positive = norms[norms > 0]
    wide = positive.max().max() > 30 * positive.min().min()
    x, y = "batch (every one at the base weights)", "gradient norm"
    figure = plot(traces, x=x, y=y, height=320, log="y" if wide else "", hovermode="x unified")
    figure.update_xaxes(tickformat=",d", dtick=1 if len(steps) < 12 else None, unifiedhovertitle_text="batch %{x}")
    return Chart(
        "gradient-norms",
        "Gradient norm by batch",
        "A batch that stands out pulls the weights harder than the others: look at its rows first.",
        figure,
    )


def loss_path(
    path: DataFrame,
    horizon: int | None,
    anchors: Sequence[int],
    tolerance: float = 0.0,
    base_path: DataFrame | None = None,
) -> Chart | None:
    """Predicted and evaluated held-out loss of every stored step, each with its band of tolerance.

    Args:
        path: columns step, predicted_loss, evaluated_loss (NaN where no forward pass was spent).
        horizon: last trusted step; None when the whole run is trusted.
        anchors: steps at which the gradient field was measured.
        tolerance: nats by which both may differ before the prediction is no longer trusted.
        base_path: as path, of the gradients at the base weights alone: what was looked at before any was taken again.
    """
    if path.empty:
        return None
    evaluated = path[path["evaluated_loss"].notna()]
    few = len(path) <= _MAX_MARKED
    band = {"type": "constant", "value": tolerance, "thickness": 11, "width": 0, "color": "var(--band)"}
    predicted = go.Scatter(
        x=path["step"],
        y=path["predicted_loss"],
        name="predicted",
        mode="lines+markers" if few else "lines",
        line={"color": SERIES[0], "width": 1.2, "dash": "dot"},
        marker={"size": 8, "symbol": "circle-open", "line": {"width": 2}},
        error_y=band if tolerance and few else None,
        hovertemplate="%{y:.4f}",
    )
    measured = go.Scatter(
        x=evaluated["step"],
        y=evaluated["evaluated_loss"],
        name="evaluated",
        mode="markers",
        marker={"color": SERIES[1], "size": 9, "symbol": "diamond"},
        hovertemplate="%{y:.4f}",
    )
    first = _base_marks(base_path, path)
    figure = plot(
        [predicted, measured, *first],
        x="optimiser step",
        y="held-out loss (nats per token)",
        height=250,
        hovermode="x unified",
    )
    _mark_steps(figure, int(path["step"].max()), horizon, anchors)
    bars = f" Bars: the tolerance of ±{tolerance:g} nats; a diamond outside ends the trust." if tolerance else ""
    more = _anchor_words(anchors) + (BASE if first else "")
    return Chart(
        "loss-path",
        "Held-out loss along the predicted run",
        f"Marks: where the loss was taken; the dots only join them.{bars}{more}",
        figure,
    )


BASE = " Hollow: evaluated along the base gradients alone."


def _base_marks(base: DataFrame | None, path: DataFrame) -> list[go.Scatter]:
    """Where the weights of the base gradients alone were evaluated, which is another path than the predicted one."""
    if base is None:
        return []
    taken = base[base["evaluated_loss"].notna() & ~base["evaluated_loss"].isin(path["evaluated_loss"])]
    if taken.empty:
        return []
    return [
        go.Scatter(
            x=taken["step"],
            y=taken["evaluated_loss"],
            customdata=taken["predicted_loss"],
            name="base gradients alone",
            mode="markers",
            marker={"color": MUTED, "size": 8, "symbol": "diamond-open"},
            hovertemplate="%{y:.4f} (predicted %{customdata:.4f})",
        )
    ]


def _mark_steps(figure: go.Figure, last: int, horizon: int | None, anchors: Sequence[int]) -> None:
    ticks = [step for step in anchors if 0 <= step <= last]
    figure.update_xaxes(tickformat="d", unifiedhovertitle_text="step %{x}")
    for step in ticks:
        figure.add_vline(step, line={"color": MUTED, "width": 1, "dash": "dot"})
    if horizon is not None and horizon < last:
        note = {"text": "beyond the horizon", "font": {"color": HARMS}}
        figure.add_vrect(horizon, last, fillcolor=HARMS, opacity=0.12, line_width=0, annotation=note)
        figure.add_vline(horizon, line={"color": HARMS, "dash": "dash"})


def _anchor_words(anchors: Sequence[int]) -> str:
    steps = ", ".join(map(str, anchors[:20])) + (" …" if len(anchors) > 20 else "")
    return f" Upright lines: gradients measured, at step {steps}." if len(anchors) else ""


def by_change(probes: DataFrame) -> DataFrame:
    """The probes, that whose perplexity changed by the largest factor first."""
    factor = (probes["perplexity_new"] / probes["perplexity_base"]).map(np.log).abs()
    return probes.loc[factor.sort_values(ascending=False, kind="stable").index]


def probe_perplexity(probes: DataFrame, top: int) -> Chart | None:
    """Perplexity of each probe before and after; columns text, perplexity_base, perplexity_new, kl."""
    if probes.empty:
        return None
    frame = by_change(probes).head(top)
    places = list(range(len(frame)))
    details = [f"{hover(row.text)}<br>KL {row.kl:.4g} nats per token" for row in frame.itertuples()]
    shift_x, shift_y = [], []
    for place, (old, new) in enumerate(zip(frame["perplexity_base"], frame["perplexity_new"], strict=True)):
        shift_x += [old, new, None]
        shift_y += [place, place, None]
    line = {"color": MUTED, "width": 2}
    traces = [go.Scatter(x=shift_x, y=shift_y, mode="lines", line=line, showlegend=False, hoverinfo="skip")]
    for column, name, color, symbol in (
        ("perplexity_base", "base", SERIES[6], "circle-open"),
        ("perplexity_new", "predicted checkpoint", SERIES[0], "circle"),
    ):
        traces.append(
            go.Scatter(
                x=frame[column],
                y=places,
                name=name,
                mode="markers",
                marker={"color": color, "size": 10, "symbol": symbol, "line": {"width": 2, "color": color}},
                customdata=details,
                hovertemplate="perplexity %{x:.4g}<br>%{customdata}",
            )
        )
    figure = plot(traces, x="perplexity (log scale)", y="probe", height=bars_height(len(frame)) + 30, log="x")
    return Chart(
        "probe-perplexity",
        "Probe texts before and after",
        "Filled right of open: the text became less likely. From the top, by how many times the perplexity changed.",
        names_on_y(figure, [label(text, 30) for text in frame["text"]]),
    )
