"""Charts of pass 0: what is wrong with the rows, and how long they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from foretune.tasks.report.charts.look import HARMS, SERIES, Chart, bars_height, label, names_on_y, plot

if TYPE_CHECKING:
    from pandas import DataFrame


def dataset_flags(counts: Mapping[str, int]) -> Chart | None:
    """Rows flagged by each rule; `counts` maps rule -> rows."""
    found = sorted(((rule, n) for rule, n in counts.items() if n > 0), key=lambda item: -item[1])
    if not found:
        return None
    rows = [n for _, n in found]
    bars = go.Bar(
        x=rows,
        y=list(range(len(found))),
        orientation="h",
        text=rows,
        textposition="outside",
        cliponaxis=False,
        marker_color=HARMS,
        hovertemplate="%{x} rows<extra></extra>",
    )
    figure = plot([bars], x="rows flagged", y="rule", height=bars_height(len(found)))
    figure.update_xaxes(range=[0, 1.1 * max(rows)], tickformat=",d", nticks=min(10, max(rows) + 1))
    return Chart(
        "dataset-flags",
        "Rows flagged by rule",
        "Each bar counts the rows that one rule flagged; a row may appear under several rules.",
        names_on_y(figure, [label(rule.replace("_", " ")) for rule, _ in found]),
    )


def row_lengths(samples: DataFrame, max_length: int | None) -> Chart | None:
    """Distribution of the tokens per row and of the tokens that carry loss.

    Args:
        samples: columns tokens, trained_tokens.
        max_length: tokens after which a row is cut off.
    """
    if samples.empty:
        return None
    longest = max(int(samples["tokens"].max()), 1)
    edges = np.linspace(0, longest, min(40, longest) + 1)
    middle, width = (edges[:-1] + edges[1:]) / 2, edges[1] - edges[0]
    shown = (("tokens", "all tokens", SERIES[6]), ("trained_tokens", "trained tokens", SERIES[0]))
    traces = [
        go.Bar(
            x=middle,
            y=np.histogram(samples[column], edges)[0],
            width=width,
            name=name,
            marker_color=color,
            opacity=0.7,
            hovertemplate="about %{x:.0f} tokens: %{y} rows",
        )
        for column, name, color in shown
    ]
    figure = plot(traces, x="tokens per row", y="rows", height=280, barmode="overlay")
    if max_length and max_length <= 1.5 * longest:
        note = {"text": f"limit {max_length:,}", "xanchor": "right"}
        figure.add_vline(max_length, line={"color": HARMS, "dash": "dash"}, annotation=note)
    return Chart(
        "row-lengths",
        "Row lengths",
        "Rows at the left end of the trained tokens teach next to nothing; rows at the limit are cut off.",
        figure,
    )
