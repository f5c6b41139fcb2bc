"""How far each rule is to be believed: precision and recall on labelled rows, as `make bench-rules` measured them."""

from __future__ import annotations

import functools
import json
from typing import Any

from foretune.storage.packaged import packaged

WAYS = {
    "exact": "leak_exact",
    "13 words in a row": "leak_13_words",
    "nearly the same words": "leak_nearly",
}
"""Way that a leak is found -> what its figures are kept under."""


@functools.cache
def measured() -> dict[str, dict[str, Any]]:
    """rule -> flagged, true_positive, positive (rows that should be flagged), rows, sets. Empty before the first
    measurement."""
    return json.loads(packaged("foretune.tasks.quality", "measured.json") or b"{}")


def measured_line(rule: str) -> str | None:
    """Precision and recall with what they were counted on, in a line; None for a rule that was not measured."""
    found = measured().get(rule)
    if not found:
        return None
    right, flagged, positive = found["true_positive"], found["flagged"], found["positive"]
    precision = f"precision {right / flagged:.2f} ({right} of {flagged} flagged)" if flagged else "nothing flagged"
    recall = f"recall {right / positive:.2f} ({right} of {positive})" if positive else "no row that should be"
    return f"{precision}, {recall}; {found['rows']:,} rows of {', '.join(found['sets'])}"


def summed(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rows `rule, set, rows, true_positive, false_positive, false_negative` as `measured` keeps them."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        rule = found.setdefault(row["rule"], {"true_positive": 0, "flagged": 0, "positive": 0, "rows": 0, "sets": []})
        rule["true_positive"] += row["true_positive"]
        rule["flagged"] += row["true_positive"] + row["false_positive"]
        rule["positive"] += row["true_positive"] + row["false_negative"]
        rule["rows"] += row["rows"]
        rule["sets"].append(row["set"])
    return found
