"""Two runs side by side as a section of the later run's report."""

from __future__ import annotations

import re
from typing import Any

from foretune.tasks.report.standalone import page_environment

SHOWN_ROWS = 20

_LINK = '<li><a href="#comparison">Comparison</a></li>\n'
_SECTION = re.compile(r'<section class="pass" id="comparison".*?</section>\n?', re.DOTALL)


def comparison_section(compared: dict[str, Any]) -> str:
    """The section as HTML, all foreign text escaped; `compared` is what `flows.compare.compare_runs` returns."""
    template = page_environment().get_template("comparison.html.jinja")
    return template.render(compared=compared, **_tables(compared))


def with_comparison(report: str, section: str) -> str:
    """The report with `section` as its last one, in place of an earlier comparison."""
    bare = _SECTION.sub("", report.replace(_LINK, ""), count=1)
    body, end, rest = bare.rpartition("</main>")
    head, close, tail = f"{body}{section}{end}{rest}".partition("</ol>\n</nav>")
    return f"{head}{_LINK}{close}{tail}"


def _tables(compared: dict[str, Any]) -> dict[str, list[tuple[Any, ...]]]:
    numbers = {**compared["numbers"], "horizon": compared["horizon"]}
    flipped, features = compared["samples"]["flipped"], compared["features"]
    return {
        "rows": [
            (word, first_rows(compared["samples"][word])) for word in ("added", "removed") if compared["samples"][word]
        ],
        "numbers": [(name.replace("_", " "), pair["a"], pair["b"]) for name, pair in numbers.items()],
        "flipped": [
            tuple(row[key] for key in ("row_a", "row_b", "verdict_a", "verdict_b", "score_a", "score_b"))
            for row in flipped[:SHOWN_ROWS]
        ],
        "quality": [(rule, pair["a"], pair["b"]) for rule, pair in compared["quality"].items()],
        "features": [(row["feature"], row["score_a"], row["score_b"], row["label"] or "unnamed") for row in features],
        "layers": [
            tuple(row[key] for key in ("module", "eta_eff_a", "eta_eff_b", "norm_a", "norm_b"))
            for row in compared["layers"]
        ],
    }


def first_rows(rows: list[int]) -> str:
    """Row numbers with commas between them, and how many more there are."""
    more = len(rows) - SHOWN_ROWS
    return ", ".join(str(row) for row in rows[:SHOWN_ROWS]) + (f" and {more} more" if more > 0 else "")
