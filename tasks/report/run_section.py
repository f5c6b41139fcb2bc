"""What a page says of its run rather than of its artefacts: written into the stored page when the run is published.

The stored page is the same for every run of the same artefacts. Where it holds one of the places below, an HTML
comment, which text from outside can never be since all of it is escaped, the run's own part is put.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from foretune.tasks.report.standalone import chart_data, page_environment

if TYPE_CHECKING:
    from foretune.tasks.report.run_record import RunRecord
    from foretune.tasks.report.shipping import Decision

PLACE = re.compile(r"<!--run:([a-z]+)-->")


def with_run(page: str, record: RunRecord, commands: Sequence[str], ship: Decision | None = None) -> str:
    """The page with every place filled: `id`, `ship`, `next`, `invariants`, `cost`, `timeline` and `figures`."""
    from foretune.tasks.report.charts.timeline import timeline
    from foretune.tasks.report.graph import BOX_HEIGHT, BOX_WIDTH, drawing
    from foretune.tasks.report.tables import passes, planned_passes

    chart = timeline(record.timeline)
    graph = {"drawing": drawing(record.graph), "box_width": BOX_WIDTH, "box_height": BOX_HEIGHT}
    filled = {
        "record": record,
        "commands": commands,
        "ship": ship,
        "chart": chart,
        "table": passes(record.timeline),
        "spent": planned_passes(record.cost.passes),
        **graph,
    }
    module = cast(Any, page_environment().get_template("run.html.jinja").make_module(filled))  # macros as attributes
    parts = {
        "id": str(module.run_id()),
        "ship": str(module.shipping()),
        "next": str(module.next()),
        "invariants": str(module.invariants()),
        "cost": str(module.cost()),
        "timeline": str(module.timeline()),
        "figures": chart_data({chart.name: chart} if chart else {}),
    }
    return PLACE.sub(lambda place: parts.get(place[1], ""), page)
