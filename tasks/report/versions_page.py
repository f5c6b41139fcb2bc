"""The versions of a dataset as a page of one file: the chart of their losses and the table of what changed."""

from __future__ import annotations

from typing import Any

from foretune.tasks.report.standalone import standalone_page


def versions_page(found: dict[str, Any]) -> str:
    """The page as text; `found` is what `foretune.flows.commands.versions` returns."""
    from foretune.tasks.report.charts.versions import losses_by_version

    chart = losses_by_version(found["versions"])
    return standalone_page("history.html.jinja", {chart.name: chart} if chart else {}, found=found)
