"""Charts of SAE features: how often they fire, which would move, which did move."""

from __future__ import annotations

from collections.abc import Collection, Sequence
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
    sure = [bool(each) for each in features["beyond_noise"]] if "beyond_noise" in features else None
    measured = sure is not None and "change" in features
    rising, falling = moving_order(features["change" if measured else column].tolist(), sure)
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


def concept_changes(
    predicted: DataFrame, measured: DataFrame | None, top: int, leading: Collection[int] | None = None
) -> Chart | None:
    """What the predicted model really shows of the concepts that move most, and what the tangent said.

    Args:
        predicted: columns as `FeaturesView.features`.
        measured: columns as `SaeDiffView.features`; None where no checkpoint was compared.
        leading: the features that stand for a family; None: each stands for itself.
    """
    both = predicted.drop(columns=["change", "z", "beyond_noise"], errors="ignore")
    if measured is None:
        frame = _ends(both, "predicted_change", top).assign(change=np.nan)
    else:
        both = both.merge(measured[["feature", "base", "new", "change", "z", "beyond_noise"]], on="feature")
        frame = _ends(both if leading is None else both[both["feature"].isin(leading)], "change", top)
    if frame.empty:
        return None
    places = list(range(len(frame)))
    details = [
        f"{hover(row.label)} (feature {row.feature}{', dormant at the base weights' if row.dormant else ''})"
        for row in frame.itertuples()
    ]
    figure = plot(
        _predicted_to_measured(frame, places, details),
        x="change of the mean activation on held-out rows (units of the SAE)",
        y="concept",
        height=bars_height(len(frame)) + 30,
    )
    figure.add_vline(0, line={"color": MUTED, "width": 1})
    return Chart(
        "concept-changes",
        "Concepts that move beyond their noise: measured, and as the tangent said",
        "Right of zero a concept grows stronger, left it fades. Filled: measured by running the predicted model; open: "
        f"estimated along the predicted change of the weights.{_agreement(both) if measured is not None else ''}",
        names_on_y(figure, [f"{label(row.label, 30)} #{row.feature}" for row in frame.itertuples()]),
    )


def _predicted_to_measured(frame: DataFrame, places: list[int], details: list[str]) -> list[go.Scatter]:
    joined_x, joined_y = [], []
    for place, (old, new) in enumerate(zip(frame["predicted_change"], frame["change"], strict=True)):
        joined_x += [old, new, None]
        joined_y += [place, place, None]
    line = {"color": MUTED, "width": 2}
    traces = [go.Scatter(x=joined_x, y=joined_y, mode="lines", line=line, showlegend=False, hoverinfo="skip")]
    colors = [RISES if value > 0 else FADES for value in frame["value"]]
    for column, name, symbol in (("predicted_change", "predicted", "circle-open"), ("change", "measured", "circle")):
        if frame[column].isna().all():
            continue
        traces.append(
            go.Scatter(
                x=frame[column],
                y=places,
                name=name,
                mode="markers",
                marker={"color": colors, "size": 10, "symbol": symbol, "line": {"width": 2, "color": colors}},
                customdata=details,
                hovertemplate="%{customdata}<br>" + name + " %{x:+.4g}<extra></extra>",
            )
        )
    return traces


def _agreement(both: DataFrame) -> str:
    """Which share of all features that both say something of moved to the side that was predicted."""
    moved = both[(both["change"] != 0) & (both["predicted_change"] != 0)].dropna(subset=["change", "predicted_change"])
    if len(moved) < 3:
        return ""
    same = float((np.sign(moved["change"]) == np.sign(moved["predicted_change"])).mean())
    return f" Of all {len(moved):,} features that move, {same:.0%} moved to the predicted side."


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
