"""The versions of a dataset as a page of one file: charts of their losses and suites, and tables of what changed."""

from __future__ import annotations

from typing import Any

from foretune.tasks.report.standalone import standalone_page


def versions_page(found: dict[str, Any]) -> str:
    """The page as text; `found` is what `foretune.flows.commands.versions` returns."""
    from foretune.tasks.report.charts.versions import losses_by_version, suites_by_version

    drawn = losses_by_version(found["versions"]), suites_by_version(found["versions"])
    names = list(dict.fromkeys(name for version in found["versions"] for name in version["suites"] or {}))
    charts = {chart.name: chart for chart in drawn if chart}
    return standalone_page("history.html.jinja", charts, found=found, suites=names)
