"""A page of one file that opens without a network: its charts, its style and the only scripts that may run."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from foretune.storage.display import shown
from foretune.tasks.report.numbers import difference, error_of, measured, number, percent, plain, seconds, signed
from foretune.tasks.report.supervision import token_html

if TYPE_CHECKING:
    import jinja2
    from markupsafe import Markup

    from foretune.tasks.report.charts.look import Chart

SCRIPTS = ("report.js", "rows.js")
STYLES = ("report.css",)
CARTESIAN = {"bar", "scatter", "heatmap"}
"""What plotly-cartesian.min.js draws of what reports have; its version is that of plotly for Python, by a test."""


@functools.cache  # keeps templates compiled: that takes as long as filling them
def page_environment() -> jinja2.Environment:
    """Where templates, style and script of every page are loaded from; text is escaped, redacted and made visible."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("foretune.tasks.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Markup is our own; any other text may come from the dataset.
        finalize=lambda value: shown(value) if type(value) is str else value,
    )
    environment.filters |= {"number": number, "signed": signed, "plain": plain, "shown": shown, "for_run": for_run}
    environment.filters |= {
        "links": links,
        "unnamed": unnamed,
        "seconds": seconds,
        "error": error_of,
        "difference": difference,
        "measured": measured,
        "percent": percent,
        "token": token,
        "token_html": token_html,
    }
    return environment


def for_run(command: str) -> Markup:
    """A command with {run} in it, escaped; the run's id is put in its place when the page is published."""
    from markupsafe import Markup, escape

    return Markup(str(escape(shown(command))).replace("{run}", "<!--run:id-->"))


def token(text: str) -> str:
    """A token as it stands in a line: a space at its start and the end of a line can be seen."""
    return text.replace("\n", "↵").replace(" ", "␣", 1) if text.strip() != text or not text else text


def unnamed(reason: str, rows: Sequence[int]) -> str:
    """A reason beside which its rows stand: without their numbers."""
    named = rf"rows? {', '.join(map(str, rows))}(?: and [\d,]+ more)?(?![\d,])"
    bare = re.sub(rf" \({named}\)", "", reason)
    return re.sub(rf"^{named}", "it" if len(rows) == 1 else "they", bare) if rows else reason


def links(rows: Sequence[int], row_count: int) -> Markup:
    """The first rows, each a link to its pane, and how many more there are."""
    from markupsafe import Markup

    named = ", ".join(f'<a href="#row-{row}">{row}</a>' for row in rows)
    more = f" and {row_count - len(rows):,} more" if row_count > len(rows) else ""
    return Markup(f"{'row' if row_count == 1 else 'rows'} {named}{more}")


def _source(environment: jinja2.Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def standalone_page(template: str, charts: Mapping[str, Chart], **context: Any) -> str:
    """The filled template as text, ready to be written as UTF-8; text of `context` is escaped."""
    from markupsafe import Markup

    environment = page_environment()
    scripts = [_plotly(environment, charts), *(_source(environment, name) for name in SCRIPTS)]
    payload = Markup(chart_data(charts))
    return _filled(environment, template, scripts, STYLES, charts=charts, payload=payload, **context)


def filled_page(template: str, scripts: Sequence[str], styles: Sequence[str], **context: Any) -> str:
    """A page without charts, of the named scripts and styles."""
    environment = page_environment()
    return _filled(environment, template, [_source(environment, name) for name in scripts], styles, **context)


def _filled(
    environment: jinja2.Environment, template: str, scripts: Sequence[str], styles: Sequence[str], **context: Any
) -> str:
    from markupsafe import Markup

    page = environment.get_template(template).render(
        scripts=[Markup(script) for script in scripts],
        policy=Markup(_policy(scripts)),
        style=Markup("".join(_source(environment, name) for name in styles)),
        **context,
    )
    return page.lstrip()  # what the macros leave before the doctype


def _plotly(environment: jinja2.Environment, charts: Mapping[str, Chart]) -> str:
    """plotly.js: the bundle of cartesian charts, a third of the whole, where the page draws nothing else."""
    kinds = {trace["type"] for chart in charts.values() for trace in chart.figure.to_plotly_json()["data"]}
    if kinds <= CARTESIAN:
        return _source(environment, "plotly-cartesian.min.js")
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def chart_data(charts: Mapping[str, Chart]) -> str:
    """JSON of the figures."""
    figures = {name: json.loads(str(chart.figure.to_json(engine="json"))) for name, chart in charts.items()}
    return json_data(figures)


def json_data(value: Any) -> str:
    """JSON without any character that means something to an HTML parser."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy(scripts: Sequence[str]) -> str:
    """A content security policy under which nothing but `scripts` runs and nothing is fetched."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
