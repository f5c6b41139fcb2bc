"""Where a run's report is read: on the web where the root is served, else the file."""

from __future__ import annotations

import os

from foretune.storage.display import one_line
from foretune.storage.runs import REPORT, Run

REPORT_URL = "FORETUNE_REPORT_URL"
"""Environment variable: the address of a report where roots are served, as in https://host/{run_id}/report.html."""


def report_address(run: Run) -> str:
    """The address that FORETUNE_REPORT_URL makes of the run's id, else the path or URI of the report."""
    template = os.environ.get(REPORT_URL, "").strip()
    if not template:
        return one_line((run.place / REPORT).uri)
    if "{run_id}" not in template:
        template = f"{template.rstrip('/')}/{{run_id}}/{REPORT}"
    return one_line(template.replace("{run_id}", run.run_id))


def report_link(run: Run) -> str:
    """The address as Markdown: a link where a browser can follow it."""
    address = report_address(run)
    if address.startswith(("http://", "https://")):
        return f"[Report]({address.translate(_IN_LINKS)})"
    return f"Report: `{address.replace('`', '')}`"


_IN_LINKS = str.maketrans({"(": "%28", ")": "%29", " ": "%20", "<": "%3C", ">": "%3E"})
