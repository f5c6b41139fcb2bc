"""Charts of SAE features: how often they fire, which would move, which did move."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from foretune.tasks.report.charts.look import (
    FADES,
    MUTED,
    RISES,
    SERIES,
    Chart,
    bars_height,
    hover,
    label,
    names_on_y,
    plot,
)
from foretune.tasks.report.concepts import moving_order

if TYPE_CHECKING:
    from pandas import DataFrame, Series

# A browser draws some two thousand SVG points without lag.
_MAX_POINTS = 2000


def firing_rates(rates: Sequence[float] | Series) -> Chart | None:
    """Distribution of the share of tokens on which each feature is active at the base weights."""
    every = np.asarray(rates, dtype=float)
    active = every[every > 0]
    if active.size == 0:
        return None
    counts, edges = np.histogram(np.log10(active), bins=30)
    middle = (edges[:-1] + edges[1:]) / 2
    # Plotly spaces bars of a logarithmic axis unevenly: the axis is linear in log10, its ticks say percent.
    powers = list(range(int(np.floor(edges[0])), 1))
    bars = go.Bar(
        x=middle,
        y=counts,
        width=edges[1] - edges[0],
        marker_color=SERIES[0],
        customdata=10.0**middle,
        hovertemplate="fires on about %{customdata:.2%} of tokens: %{y} features<extra></extra>",
    )
    figure = plot([bars], x="share of tokens on which a feature fires", y="features", height=280, bargap=0)
    figure.update_xaxes(tickvals=powers, ticktext=[f"{10.0 ** (power + 2):g} %" for power in powers])
    return Chart(
        "firing-rates",
        "How often each feature fires",
        f"Features on the right fire on most tokens; {every.size - active.size:,} never fire.",
        figure,
    )


def _ends(features: DataFrame, column: str, top: int) -> DataFrame:
    """The `top` rows that rise and that fall most, `column` renamed `value`, from the largest rise to the largest fall.

    Where the change was measured, that decides which and in which order, as everywhere; else `column` itself does.
    """
    measured = {"change", "z"} <= set(features.columns)
    zs = features["z"].tolist() if measured else None
    rising, falling = moving_order(features["change" if measured else column].tolist(), zs)
    chosen = features.iloc[[*rising[:top], *reversed(falling[:top])]]
    return chosen.assign(value=chosen[column].astype(float))


def _diverging(frame: DataFrame, details: Sequence[str], unit: str, ends: tuple[str, str]) -> go.Figure:
    """Bars to the right and to the left; `frame` has feature, label, value and perhaps dormant (hatched)."""
    values = frame["value"].to_numpy()
    hatched = frame["dormant"].to_numpy(dtype=bool) if "dormant" in frame else np.zeros(len(frame), dtype=bool)
    traces = []
    for side, color, wording in ((values > 0, RISES, ends[0]), (values < 0, FADES, ends[1])):
        at = np.flatnonzero(side)
        pattern = {"shape": ["/" if hatched[i] else "" for i in at], "fgopacity": 0.9}
        traces.append(
            go.Bar(
                x=values[at],
                y=at,
                orientation="h",
                name=wording,
                customdata=[details[int(i)] for i in at],
                marker={"color": color, "pattern": pattern},
                hovertemplate="%{customdata}<extra></extra>",
            )
        )
    figure = plot(traces, x=unit, y="feature", height=bars_height(len(frame)) + 30, barmode="overlay")
    return names_on_y(figure, [f"{label(row.label, 26)} #{row.feature}" for row in frame.itertuples()])


def moving_features(features: DataFrame, top: int) -> Chart | None:
    """Features of largest predicted change; columns as `FeaturesView.features`."""
    frame = _ends(features, "predicted_change", top)
    if frame.empty:
        return None
    details = [
        f"{hover(row.label)} (feature {row.feature})<br>now {row.base_act:.4g}, predicted {row.value:+.4g}"
        f"<br>score {row.score:+.3g}{', dormant today' if row.dormant else ''}"
        for row in frame.itertuples()
    ]
    return Chart(
        "moving-features",
        "Concepts that would move",
        "Bars to the right grow stronger, bars to the left fade; hatched features are dormant today.",
        _diverging(frame, details, "predicted change of activation", ("strengthened", "suppressed")),
    )


def feature_change(features: DataFrame, top: int) -> Chart | None:
    """Features of largest change between base and checkpoint; columns as `SaeDiffView.features`."""
    frame = _ends(features, "change", top)
    if frame.empty:
        return None
    details = [
        f"{hover(row.label)} (feature {row.feature})<br>base {row.base:.4g}, checkpoint {row.new:.4g}"
        f"<br>z = {row.z:+.2f}"
        for row in frame.itertuples()
    ]
    return Chart(
        "feature-change",
        "Concepts that moved in the predicted checkpoint",
        "Measured by running the checkpoint: right is stronger than in the base, left is weaker.",
        _diverging(frame, details, "change of activation", ("stronger", "weaker")),
    )


def feature_agreement(predicted: DataFrame, measured: DataFrame) -> Chart | None:
    """Predicted against measured change of each feature; joined on `feature`."""
    both = measured[["feature", "label", "change"]].merge(predicted[["feature", "predicted_change"]], on="feature")
    both = both[(both["change"] != 0) & (both["predicted_change"] != 0)].dropna()
    if len(both) < 3:
        return None
    same = float((np.sign(both["change"]) == np.sign(both["predicted_change"])).mean())
    drawn = both.loc[both["change"].abs().nlargest(_MAX_POINTS).index]
    dots = go.Scatter(
        x=drawn["predicted_change"],
        y=drawn["change"],
        mode="markers",
        marker={"size": 6, "opacity": 0.55, "color": SERIES[0]},
        customdata=[f"{hover(row.label)} (feature {row.feature})" for row in drawn.itertuples()],
        hovertemplate="%{customdata}<br>predicted %{x:+.4g}, measured %{y:+.4g}<extra></extra>",
    )
    figure = plot([dots], x="predicted change", y="change in the checkpoint", height=340)
    for add in (figure.add_hline, figure.add_vline):
        add(0, line={"color": MUTED, "width": 1})
    return Chart(
        "feature-agreement",
        "Predicted against measured change",
        f"Dots in the upper right and lower left moved as predicted: {same:.0%} of {len(both):,}.",
        figure,
    )


def preference_features(features: DataFrame, top: int) -> Chart | None:
    """Features that DPO pushes harder or less than plain fine-tuning; columns feature, label, change."""
    frame = _ends(features, "change", top)
    if frame.empty:
        return None
    details = [f"{hover(row.label)} (feature {row.feature})<br>{row.value:+.4g}" for row in frame.itertuples()]
    return Chart(
        "preference-features",
        "Concepts that the preferences push",
        "Compared with plain fine-tuning, the preferences reinforce the right and suppress the left.",
        _diverging(frame, details, "DPO score minus SFT score", ("reinforced", "suppressed")),
    )
