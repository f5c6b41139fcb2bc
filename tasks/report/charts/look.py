"""What every chart shares: the frozen `Chart`, the template, and how foreign text enters a figure.

Colours are CSS variables, so that one figure serves the light and the dark page (report.js resolves them).
Plotly reads text as markup: dataset text enters a figure through `label` or `hover` only.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from foretune.storage.display import one_line

HELPS, HARMS, NEUTRAL = "var(--helps)", "var(--harms)", "var(--neutral)"
RISES, FADES = "var(--rises)", "var(--fades)"
INK, MUTED, GRID = "var(--ink)", "var(--muted)", "var(--line)"
SERIES = tuple(f"var(--series-{n})" for n in range(1, 8))

_AXIS = {
    "gridcolor": GRID,
    "zerolinecolor": MUTED,
    "linecolor": GRID,
    "automargin": True,
    "exponentformat": "power",
    "minexponent": 5,
    "separatethousands": True,
    "title": {"standoff": 10, "font": {"size": 13, "color": MUTED}},
}
LOOK = go.layout.Template(
    layout={
        "font": {
            "family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif",
            "size": 13,
            "color": INK,
        },
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 12, "r": 12, "t": 12, "b": 12},
        "xaxis": {**_AXIS, "zeroline": False},
        "yaxis": _AXIS,
        "colorway": SERIES,
        "bargap": 0.25,
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "hoverlabel": {
            "align": "left",
            "namelength": -1,
            "bgcolor": "var(--surface)",
            "font": {"color": INK},
        },
    }
)


@dataclass(frozen=True)
class Chart:
    name: str  # id on the page
    title: str
    caption: str  # one sentence: how to read it
    figure: go.Figure


def _escaped(text: str) -> str:
    # Plotly knows &amp;, &lt; and &gt; and would show &quot; as it stands; no quote can end anything without a tag.
    return html.escape(text, quote=False)


def label(text: object, limit: int = 34) -> str:
    """A name for an axis or a legend: one line, at most `limit` characters, escaped."""
    return _escaped(one_line(text, limit))


def hover(text: object) -> str:
    """Foreign text for a hover box: at most 240 characters, wrapped at 64, escaped."""
    return "<br>".join(_escaped(part) for part in textwrap.wrap(one_line(text, 240), 64))


def plot(traces: Sequence[object], x: str, y: str, height: int, log: str = "", **layout: Any) -> go.Figure:
    """A figure with titled axes, `height` in pixels; `log` names the logarithmic axes ("x", "y" or "xy")."""
    figure = go.Figure(list(traces), layout={"template": LOOK, "height": height, "showlegend": len(traces) > 1})
    # "D2" ticks 1, 2 and 5 of every decade; the format writes 0.2 where the default writes a bare 2.
    logarithmic: dict[str, Any] = {"type": "log", "dtick": "D2", "tickformat": "~g"}
    figure.update_xaxes(title_text=x, **(logarithmic if "x" in log else {}))
    figure.update_yaxes(title_text=y, **(logarithmic if "y" in log else {}))
    return figure.update_layout(**layout)


def bars_height(count: int) -> int:
    """Pixels that `count` horizontal bars with readable names need."""
    return 90 + 24 * count


def names_on_y(figure: go.Figure, names: Sequence[str]) -> go.Figure:
    """Write escaped `names` beside positions 0, 1, ... from the top."""
    # Positions are numbers: on a category axis two features of one name would fall together.
    ends = [len(names) - 0.4, -0.6]
    figure.update_xaxes(zeroline=True)
    return figure.update_yaxes(
        tickvals=list(range(len(names))), ticktext=list(names), range=ends, showgrid=False, zeroline=False
    )
