"""The what-if as a page of one file: the chart and the table of all settings."""

from __future__ import annotations

from typing import Any

from foretune.tasks.report.request_lines import RequestLines
from foretune.tasks.report.standalone import standalone_page
from foretune.tasks.report.whatif_words import mark, shown_outcomes, standing


def whatif_page(result: dict[str, Any], lines: RequestLines) -> str:
    """The page as text; `result` is what `foretune.flows.commands.whatif` returns."""
    from foretune.tasks.report.charts.settings import losses_by_setting

    outcomes = shown_outcomes(result)
    chart = losses_by_setting(outcomes, result["base_loss"])
    return standalone_page(
        "whatif.html.jinja",
        {chart.name: chart} if chart else {},
        result=result,
        lines=lines,
        outcomes=[(mark(outcome), outcome) for outcome in outcomes],
        standing=standing(result),
        paths=list(result["settings"][0]["changed"]),
    )
