"""Charts of single rows: which help, which harm, what answers gain, which pairs are backwards, how the solve went."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from foretune.storage.display import one_line
from foretune.tasks.report.charts.look import HARMS, HELPS, NEUTRAL, SERIES, Chart, hover, label, plot

if TYPE_CHECKING:
    from pandas import DataFrame, Series

# Beyond this many bars the middle of a ranking is thinned out; both ends stay complete.
_MAX_BARS = 600
_VERDICT_COLORS = {"helps": HELPS, "lowers": HELPS, "harms": HARMS, "raises": HARMS}


def solver_residual(residuals: Sequence[float], status: str) -> Chart | None:
    """Relative residual of the inverse-curvature solve after each LiSSA iteration."""
    drawn = [value if value > 0 else None for value in residuals]
    if not any(drawn):
        return None
    line = go.Scatter(
        x=list(range(1, len(drawn) + 1)),
        y=drawn,
        mode="lines+markers",
        line={"color": SERIES[0], "width": 2},
        hovertemplate="iteration %{x}: %{y:.3g}<extra></extra>",
    )
    figure = plot([line], x="LiSSA iteration", y="relative residual", height=280, log="y")
    figure.update_xaxes(tickformat="d", range=[0.5, len(drawn) + 0.5], nticks=min(len(drawn), 12) + 1)
    return Chart(
        "solver-residual",
        "LiSSA residual",
        f"A falling line means a solve to be trusted; it ended as: {one_line(status, 80)}.",
        figure,
    )


def _thinned(count: int) -> np.ndarray:
    """Positions of the bars to draw out of `count` sorted ones."""
    if count <= _MAX_BARS:
        return np.arange(count)
    third = _MAX_BARS // 3
    middle = np.linspace(third, count - third - 1, third).round().astype(int)
    return np.concatenate([np.arange(third), middle, np.arange(count - third, count)])


def _ranked_bars(
    at: np.ndarray, scores: Sequence[float] | Series, colors: Sequence[str], details: Sequence[str], x: str, y: str
) -> go.Figure:
    """Bars at sorted positions `at`, each as wide as the ranks that it stands for."""
    bars = go.Bar(
        x=at + 1,
        y=scores,
        width=np.gradient(at.astype(float)) * 0.85 if len(at) > 1 else None,
        marker={"color": colors, "line": {"width": 0}},
        customdata=details,
        hovertemplate="%{customdata}<extra></extra>",
    )
    return plot([bars], x=x, y=y, height=340, hovermode="closest")


def influence_ranking(rows: DataFrame, target: str = "held-out loss", unit: str = "nats per token") -> Chart | None:
    """Every row's influence on a target, most harmful first; columns as `InfluenceView.rows`."""
    if rows.empty:
        return None
    at = _thinned(len(rows))
    drawn = rows.sort_values("rank", kind="stable").iloc[at]
    colors = [_VERDICT_COLORS.get(verdict, NEUTRAL) for verdict in drawn["verdict"]]
    details = [
        f"<b>row {row.row}</b> {label(row.verdict)}: {row.score:+.3g}<br>{hover(row.text)}"
        for row in drawn.itertuples()
    ]
    x, y = "rank (1 = most harmful)", f"change of {label(target)} ({label(unit)})"
    return Chart(
        "influence-ranking",
        f"Influence of every row on {one_line(target, 60)}",
        "What training on the row adds. Of a loss, negative helps: removing the row raises it; positive harms.",
        _ranked_bars(at, drawn["score"], colors, details, x, y),
    )


def preference_margins(pairs: DataFrame) -> Chart | None:
    """Sorted preference margins at the base weights; columns as `PreferenceView.pairs`."""
    if pairs.empty:
        return None
    at = _thinned(len(pairs))
    drawn = pairs.sort_values("margin_per_token", kind="stable").iloc[at]
    details = [
        f"{row.margin_per_token:+.3g} nats per token, {row.margin_raw:+.3g} nats in all<br>{hover(row.text)}"
        for row in drawn.itertuples()
    ]
    colors = [HARMS if margin < 0 else HELPS for margin in drawn["margin_per_token"]]
    x, y = "pair, sorted by margin", "margin (nats per token)"
    return Chart(
        "preference-margins",
        "Margin of every pair",
        "Below zero the base model already prefers the rejected answer: the pair may be backwards.",
        _ranked_bars(at, drawn["margin_per_token"], colors, details, x, y),
    )


def prompt_gains(gains: Sequence[float] | Series, threshold: float) -> Chart | None:
    """Distribution of what answers gain from their prompts, nats per answer."""
    known = np.asarray(gains, dtype=float)
    known = known[np.isfinite(known)]
    if not known.size:
        return None
    counts, edges = np.histogram(known, bins=min(40, max(known.size, 2)))
    bars = go.Bar(
        x=(edges[:-1] + edges[1:]) / 2,
        y=counts,
        width=np.diff(edges),
        marker_color=SERIES[0],
        customdata=[f"{low:.3g} to {high:.3g} nats" for low, high in pairwise(edges)],
        hovertemplate="%{customdata}: %{y} rows<extra></extra>",
    )
    figure = plot([bars], x="gain of the answer from its prompt (nats per answer)", y="rows", height=280, bargap=0)
    if edges[0] <= threshold <= edges[-1]:
        figure.add_vline(threshold, line={"color": HARMS, "dash": "dash"}, annotation={"text": "threshold"})
    return Chart(
        "prompt-gains",
        "What answers gain from their prompts",
        "Loss of the answer alone less that with its prompt. At the left stand answers that may belong to another row.",
        figure,
    )
