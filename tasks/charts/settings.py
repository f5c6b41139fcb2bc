"""The chart of a what-if: predicted held-out loss of every setting, and which of them may be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from tasks.charts.look import HELPS, MUTED, NEUTRAL, SERIES, Chart, hover, label, plot


def losses_by_setting(settings: Sequence[Mapping[str, Any]], base_loss: float) -> Chart | None:
    """Predicted (and evaluated) loss of every setting that does not diverge.

    Args:
        settings: changed, predicted_loss, evaluated_loss, status, steps, trusted_steps, best.
        base_loss: held-out loss at the base weights, nats per label token.
    """
    shown = [setting for setting in settings if setting["predicted_loss"] is not None]
    if not shown:
        return None
    names = [label(_name(setting["changed"]), 60) for setting in shown]
    traces = [
        _points(
            [(name, s["predicted_loss"], s["status"]) for name, s in zip(names, shown, strict=True) if wanted(s)],
            title,
            color,
            symbol,
        )
        for title, color, symbol, wanted in (
            ("trusted for the whole run", SERIES[0], "circle", lambda s: s["trusted_steps"] == s["steps"]),
            ("beyond what the run's gradients tell", NEUTRAL, "circle-open", lambda s: s["trusted_steps"] < s["steps"]),
        )
    ]
    evaluated = [(n, s["evaluated_loss"], "evaluated") for n, s in zip(names, shown, strict=True)]
    traces.append(_points([e for e in evaluated if e[1] is not None], "evaluated", SERIES[3], "x"))
    best = [(n, s["predicted_loss"], s["status"]) for n, s in zip(names, shown, strict=True) if s["best"]]
    traces.append(_points(best, "best", HELPS, "star"))
    figure = plot(
        [trace for trace in traces if len(trace.x)],
        x="held-out loss, nats per token",
        y="",
        height=110 + 26 * len(shown),
    )
    figure.add_vline(x=base_loss, line={"color": MUTED, "dash": "dot"}, annotation_text="base")
    figure.update_yaxes(autorange="reversed", categoryorder="array", categoryarray=names)
    return Chart(
        "settings",
        "Held-out loss by setting",
        "Left of the dotted line is better than the base; an open circle lies farther from the base weights than the "
        "run's own prediction held.",
        figure,
    )


def _points(points: Sequence[tuple[str, float, str]], name: str, color: str, symbol: str) -> go.Scatter:
    return go.Scatter(
        x=[loss for _, loss, _ in points],
        y=[setting for setting, _, _ in points],
        customdata=[hover(status) for _, _, status in points],
        name=name,
        mode="markers",
        marker={"color": color, "symbol": symbol, "size": 14 if symbol == "star" else 9, "line": {"width": 1.5}},
        hovertemplate="%{y}<br>%{x:.4f} (%{customdata})",
    )


def _name(changed: Mapping[str, Any]) -> str:
    return ", ".join(f"{path.rsplit('.', 1)[-1]} {value}" for path, value in changed.items()) or "as simulated"
