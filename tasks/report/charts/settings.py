"""The chart of a what-if: held-out loss of every setting, how far it may be trusted, and how far its weights move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from foretune.tasks.report.charts.look import GRID, HELPS, MUTED, NEUTRAL, SERIES, Chart, hover, label, plot

_PANELS = (("xaxis", 0.0, 0.5), ("xaxis2", 0.55, 0.75), ("xaxis3", 0.8, 1.0))  # loss, horizon, movement
_UNTRUSTED = "beyond what the run's gradients tell"


def losses_by_setting(settings: Sequence[Mapping[str, Any]], base_loss: float) -> Chart | None:
    """Predicted (and evaluated) loss, trusted steps and largest movement of every setting that does not diverge.

    Args:
        settings: changed, predicted_loss, evaluated_loss, status, steps, trusted_steps, largest_movement,
            largest_module, best.
        base_loss: held-out loss at the base weights, nats per label token.
    """
    shown = [setting for setting in settings if setting["predicted_loss"] is not None]
    if not shown:
        return None
    traces = [
        *_losses(shown),
        _bars(shown, "x2", [100 * s["trusted_steps"] / s["steps"] for s in shown], [s["status"] for s in shown]),
        _bars(shown, "x3", [100 * s["largest_movement"] for s in shown], [s["largest_module"] or "" for s in shown]),
    ]
    figure = plot(traces, x="held-out loss, nats per token", y="", height=130 + 26 * len(shown))
    titles = ("held-out loss, nats per token", "trusted, % of steps", "largest move, %")
    for (axis, start, end), title in zip(_PANELS, titles, strict=True):
        figure.update_layout({axis: {"domain": [start, end], "anchor": "y", "title": {"text": title}}})
        if axis != "xaxis":
            look = figure.layout.template.layout.xaxis.to_plotly_json()
            figure.update_layout({axis: {**look, "title": {**look["title"], "text": title}, "rangemode": "tozero"}})
    figure.update_layout(xaxis2={"range": [0, 105], "tickvals": [0, 50, 100]}, bargap=0.5)
    figure.add_vline(x=base_loss, line={"color": MUTED, "dash": "dot"}, annotation_text="base")
    names = [label(_name(setting["changed"]), 60) for setting in shown]
    ends = [len(shown) - 0.4, -0.6]
    figure.update_yaxes(tickvals=list(range(len(shown))), ticktext=names, range=ends, zeroline=False, gridcolor=GRID)
    return Chart(
        "settings",
        "Held-out loss by setting",
        "Left of the dotted line is better than the base; an open circle lies farther from the base weights than the "
        "run's own prediction held. Movement is that of the module that moves most, as a share of its norm.",
        figure,
    )


def _losses(shown: Sequence[Mapping[str, Any]]) -> list[go.Scatter]:
    """One trace per kind of mark; a setting's place is its number from the top."""
    placed = list(enumerate(shown))
    trusted = [(n, s["predicted_loss"], s["status"]) for n, s in placed if s["trusted_steps"] == s["steps"]]
    beyond = [(n, s["predicted_loss"], s["status"]) for n, s in placed if s["trusted_steps"] < s["steps"]]
    evaluated = [(n, s["evaluated_loss"], "evaluated") for n, s in placed if s["evaluated_loss"] is not None]
    best = [
        (n, s["predicted_loss"] if s["evaluated_loss"] is None else s["evaluated_loss"], s["status"])
        for n, s in placed
        if s["best"]
    ]
    marks = (
        (trusted, "trusted for the whole run", SERIES[0], "circle"),
        (beyond, _UNTRUSTED, NEUTRAL, "circle-open"),
        (evaluated, "evaluated", SERIES[3], "x"),
        (best, "best", HELPS, "star"),
    )
    return [_points(*mark) for mark in marks if mark[0]]


def _points(points: Sequence[tuple[int, float, str]], name: str, color: str, symbol: str) -> go.Scatter:
    return go.Scatter(
        x=[loss for _, loss, _ in points],
        y=[place for place, _, _ in points],
        customdata=[hover(status) for _, _, status in points],
        name=name,
        mode="markers",
        marker={"color": color, "symbol": symbol, "size": 14 if symbol == "star" else 9, "line": {"width": 1.5}},
        hovertemplate="%{x:.4f} (%{customdata})",
    )


def _bars(shown: Sequence[Mapping[str, Any]], axis: str, lengths: Sequence[float], notes: Sequence[str]) -> go.Bar:
    return go.Bar(
        x=lengths,
        y=list(range(len(shown))),
        customdata=[hover(note) for note in notes],
        xaxis=axis,
        orientation="h",
        marker={"color": [HELPS if s["best"] else NEUTRAL for s in shown]},
        showlegend=False,
        hovertemplate="%{x:.3g} % (%{customdata})<extra></extra>",
    )


def _name(changed: Mapping[str, Any]) -> str:
    return ", ".join(f"{path.rsplit('.', 1)[-1]} {value}" for path, value in changed.items()) or "as simulated"
