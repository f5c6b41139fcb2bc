"""The charts of a dataset's versions: held-out loss before and after training on each, and what each breaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from foretune.tasks.report.charts.look import HARMS, HELPS, MUTED, SERIES, Chart, hover, label, plot

_LINES = (
    ("heldout_loss_base", "base weights", MUTED, "dot"),
    ("heldout_loss_predicted", "predicted", SERIES[0], "dash"),
    ("heldout_loss_evaluated", "evaluated on the predicted weights", SERIES[3], "solid"),
)


def losses_by_version(versions: Sequence[Mapping[str, Any]]) -> Chart | None:
    """Three losses of every version, and its flagged rows below.

    Args:
        versions: run_id, rows, flagged_rows, verdict, accepted and the three losses (None where unknown), oldest first.
    """
    if not any(version["heldout_loss_evaluated"] is not None for version in versions):
        return None
    places = list(range(len(versions)))
    said = [hover(f"{version['run_id']} {version['verdict'] or ''}") for version in versions]
    traces: list[Any] = [
        go.Scatter(
            x=places,
            y=[version[column] for version in versions],
            name=name,
            mode="lines+markers",
            customdata=said,
            line={"color": color, "width": 2, "dash": dash},
            marker={"size": 7},
            hovertemplate="%{y:.4f} (%{customdata})",
        )
        for column, name, color, dash in _LINES
    ]
    for mark, color, name in ((True, HELPS, "accepted"), (False, HARMS, "refused")):
        chosen = [
            place
            for place, version in enumerate(versions)
            if (version["accepted"] if mark else version["verdict"] == "fail")
        ]
        if chosen:
            traces.append(
                go.Scatter(
                    x=chosen,
                    y=[versions[place]["heldout_loss_evaluated"] for place in chosen],
                    name=name,
                    mode="markers",
                    customdata=[said[place] for place in chosen],
                    marker={"color": color, "symbol": "star" if mark else "x", "size": 14},
                    hovertemplate="%{y:.4f} (%{customdata})",
                )
            )
    flagged = go.Bar(
        x=places,
        y=[version["flagged_rows"] for version in versions],
        name="flagged rows",
        marker={"color": SERIES[1]},
        yaxis="y2",
        hovertemplate="%{y} flagged rows",
    )
    figure = plot([*traces, flagged], x="version, oldest first", y="held-out loss, nats per token", height=420)
    look = figure.layout.template.layout.yaxis.to_plotly_json()
    below = {"title": {**look["title"], "text": "flagged rows"}, "domain": [0.0, 0.22], "rangemode": "tozero"}
    figure.update_layout(yaxis={"domain": [0.32, 1.0]}, yaxis2={**look, **below})
    figure.update_xaxes(tickvals=places, ticktext=[label(version["run_id"], 15) for version in versions])
    return Chart(
        "versions",
        "Held-out loss by version",
        "Lower is better; a version whose evaluated loss rises above the one before lost something that was there.",
        figure,
    )


DASHES = ("solid", "dash", "dot")


def suites_by_version(versions: Sequence[Mapping[str, Any]]) -> Chart | None:
    """The change of every suite by version, a line each; a gap where a version was not asked.

    Args:
        versions: run_id, ship and suites ({name: base, predicted, change, verdict, against_accepted}, or None).
    """
    names = list(dict.fromkeys(name for version in versions for name in version.get("suites") or {}))
    if not names:
        return None
    places = list(range(len(versions)))
    asked = {name: [(version.get("suites") or {}).get(name) for version in versions] for name in names}
    traces: list[Any] = [
        go.Scatter(
            x=places,
            y=[each and each["change"] for each in suites],
            name=label(name.replace("_", " ")),
            mode="lines+markers",
            customdata=[hover(_said(version, each)) for version, each in zip(versions, suites, strict=True)],
            line={"color": SERIES[n % len(SERIES)], "width": 2, "dash": DASHES[n // len(SERIES) % len(DASHES)]},
            marker={"size": 7},
            hovertemplate="%{y:+.4f} (%{customdata})",
        )
        for n, (name, suites) in enumerate(asked.items())
    ]
    figure = plot(traces, x="version, oldest first", y="predicted less base, in the suite's unit", height=420)
    figure.update_layout(showlegend=True)
    figure.update_xaxes(tickvals=places, ticktext=[label(version["run_id"], 15) for version in versions])
    caption = "What training on each version would do to each suite; zero is no change."
    return Chart("suites", "Behaviour by version", caption, figure)


def _said(version: Mapping[str, Any], suite: Mapping[str, Any] | None) -> str:
    """A point in words."""
    if suite is None:
        return version["run_id"]
    return f"{version['run_id']}: {suite['base']:.3g} to {suite['predicted']:.3g}, {suite['verdict']}"
