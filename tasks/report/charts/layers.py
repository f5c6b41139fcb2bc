"""Charts over the depth of the model: one cell or one line per module kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from foretune.tasks.report.charts.look import INK, SERIES, Chart, label, plot

if TYPE_CHECKING:
    from pandas import DataFrame

_SCALE = [[0.0, "var(--map-low)"], [0.5, "var(--map-middle)"], [1.0, "var(--map-high)"]]
_SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "x", "star")


def _ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Colour-bar ticks for log10 values between `low` and `high`, written as the numbers they stand for."""
    values = np.linspace(low, high, 4) if high - low > 1e-9 else np.array([low])
    return values.tolist(), [f"{power:.2g}" if power < 100 else f"{power:,.0f}" for power in 10.0**values]


def _grid(frame: DataFrame, values: Sequence[float] | np.ndarray) -> tuple[list[int], list[str], np.ndarray]:
    """Layers [l], kinds [k] and the values laid out as [k, l], NaN where the model has no such module."""
    kinds = list(dict.fromkeys(frame["kind"]))
    layers = list(range(int(frame["layer"].min()), int(frame["layer"].max()) + 1))
    grid = np.full((len(kinds), len(layers)), np.nan)
    for layer, kind, value in zip(frame["layer"], frame["kind"], values, strict=True):
        grid[kinds.index(kind), int(layer) - layers[0]] = value
    return layers, kinds, grid


def _layer_map(
    frame: DataFrame,
    values: np.ndarray,
    unit: str,
    details: Sequence[str],
    marked: np.ndarray,
    symbol: str,
    mark: str,
) -> go.Figure:
    """Heat map of log10 |values| over layers x module kinds; `marked` ones carry `symbol`, named `mark`."""
    sizes = np.abs(values)
    logs = np.log10(sizes, out=np.full(sizes.shape, np.nan), where=sizes > 0)
    layers, kinds, grid = _grid(frame, logs)
    text = _grid(frame, np.arange(len(frame)))[2]
    hovers = [["" if np.isnan(i) else details[int(i)] for i in line] for line in text]
    finite = logs[np.isfinite(logs)]
    ticks = _ticks(float(finite.min()), float(finite.max())) if finite.size else ([], [])
    bar = {
        "title": {"text": unit, "side": "top"},
        "tickvals": ticks[0],
        "ticktext": ticks[1],
        "thickness": 12,
    }
    cells = go.Heatmap(
        z=[[None if np.isnan(cell) else float(cell) for cell in line] for line in grid],
        x=layers,
        y=list(range(len(kinds))),
        customdata=hovers,
        colorscale=_SCALE,
        colorbar=bar,
        xgap=1,
        ygap=1,
        hoverongaps=True,
        hovertemplate="%{customdata}<extra></extra>",
        showlegend=False,
    )
    at = np.flatnonzero(marked)
    marks = go.Scatter(
        x=frame["layer"].to_numpy()[at],
        y=[kinds.index(kind) for kind in frame["kind"].to_numpy()[at]],
        mode="markers",
        name=mark,
        marker={"symbol": symbol, "size": 9, "color": INK, "line": {"color": "var(--surface)", "width": 1.5}},
        customdata=[details[int(i)] for i in at],
        hovertemplate="%{customdata}<extra></extra>",
    )
    traces = [cells, marks] if at.size else [cells]
    figure = plot(traces, x="layer", y="module", height=170 + 32 * len(kinds), showlegend=bool(at.size))
    figure.update_xaxes(showgrid=False, tickformat="d", tick0=0, dtick=max(1, len(layers) // 8))
    names = [label(kind) for kind in kinds]
    return figure.update_yaxes(
        tickvals=list(range(len(kinds))), ticktext=names, autorange="reversed", showgrid=False, zeroline=False
    )


def _in_layers(frame: DataFrame) -> DataFrame:
    # Embeddings and heads belong to no layer and have no place on the depth axis.
    return frame[frame["layer"].notna()]


def layer_norms(layers: DataFrame) -> Chart | None:
    """Mean gradient norm of each module; columns module, layer, kind, mean, max, dead."""
    frame = _in_layers(layers)
    if frame.empty:
        return None
    dead = frame["dead"].to_numpy(dtype=bool)
    details = [
        f"{label(row.module, 80)}<br>mean {row.mean:.3g}, largest {row.max:.3g}{', dead' if row.dead else ''}"
        for row in frame.itertuples()
    ]
    values = np.where(dead, 0.0, frame["mean"].to_numpy(dtype=float))
    return Chart(
        "layer-norms",
        "Gradient norm by layer and module",
        f"Strong colour learns more; a cross marks a dead module (mean norm under 1e-6): {dead.sum()} here.",
        _layer_map(frame, values, "norm", details, dead, "x", "dead module"),
    )


def curvature_map(layers: DataFrame) -> Chart | None:
    """Rayleigh curvature K_ii = g.Hg / g.g of each module; columns as `PredictionView.layers`."""
    frame = _in_layers(layers)
    if frame.empty:
        return None
    values = frame["K_ii"].to_numpy(dtype=float)
    return Chart(
        "curvature-map",
        "Curvature K_ii along the gradient",
        "Strong colour is sharp, where a step overshoots first; a dot marks negative curvature.",
        _layer_map(frame, values, "|K_ii|", _prediction_details(frame), values < 0, "circle", "negative K_ii"),
    )


def step_size_map(layers: DataFrame) -> Chart | None:
    """Effective learning rate eta_eff = eta T / (K_ii + lambda); columns as `PredictionView.layers`."""
    frame = _in_layers(layers)
    if frame.empty:
        return None
    values = frame["eta_eff"].to_numpy(dtype=float)
    clipped = frame["clipped"].to_numpy(dtype=bool)
    return Chart(
        "step-size-map",
        "Effective learning rate",
        "Strong colour moves far because the loss is flat there; a cross marks a clipped change.",
        _layer_map(frame, values, "eta_eff", _prediction_details(frame), clipped, "x", "clipped"),
    )


def _prediction_details(frame: DataFrame) -> list[str]:
    return [
        f"{label(row.module, 80)}<br>K_ii {row.K_ii:.3g}, eta_eff {row.eta_eff:.3g}"
        f"<br>norm of the change {row.norm:.3g}{', clipped' if row.clipped else ''}"
        for row in frame.itertuples()
    ]


def weight_change(layers: DataFrame) -> Chart | None:
    """Relative change of each module's weights; columns as `ModelDiffView.layers`."""
    frame = _in_layers(layers)
    frame = frame[frame["delta_norm"] > 0]
    if frame.empty:
        return None
    traces = []
    for position, kind in enumerate(dict.fromkeys(frame["kind"])):
        part = frame[frame["kind"] == kind].sort_values("layer")
        traces.append(
            go.Scatter(
                x=part["layer"],
                y=part["delta_norm"] / part["norm_base"],
                name=label(kind),
                mode="lines+markers",
                line={"color": SERIES[position % len(SERIES)], "width": 2},
                marker={"symbol": _SYMBOLS[position % len(_SYMBOLS)], "size": 7},
                hovertemplate="%{y:.3%}",
            )
        )
    figure = plot(traces, x="layer", y="change / base norm", height=320, hovermode="x unified", showlegend=True)
    figure.update_xaxes(tickformat="d", unifiedhovertitle_text="layer %{x}")
    figure.update_yaxes(tickformat="~%", rangemode="tozero")
    return Chart(
        "weight-change",
        "How far the weights move",
        f"Norm of the change over the norm of the base weights, for the {len(frame):,} modules that change.",
        figure,
    )
