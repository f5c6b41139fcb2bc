"""A page of one file that opens without a network: its charts, its style and the only scripts that may run."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from foretune.storage.display import shown
from foretune.tasks.report.numbers import number, plain, signed

if TYPE_CHECKING:
    import jinja2

    from foretune.tasks.report.charts.look import Chart


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
    environment.filters |= {"number": number, "signed": signed, "plain": plain}
    return environment


def _source(environment: jinja2.Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def standalone_page(template: str, charts: Mapping[str, Chart], **context: Any) -> str:
    """The filled template as text, ready to be written as UTF-8; text of `context` is escaped."""
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = page_environment()
    scripts = [get_plotlyjs(), _source(environment, "report.js")]
    environment.filters |= {"shown": shown}
    page = environment.get_template(template).render(
        charts=charts,
        payload=Markup(chart_data(charts)),
        scripts=[Markup(script) for script in scripts],
        policy=Markup(_policy(scripts)),
        style=Markup(_source(environment, "report.css")),
        **context,
    )
    return page.lstrip()  # what the macros leave before the doctype


def chart_data(charts: Mapping[str, Chart]) -> str:
    """JSON of the figures, without any character that means something to an HTML parser."""
    figures = {name: json.loads(str(chart.figure.to_json(engine="json"))) for name, chart in charts.items()}
    text = json.dumps(figures, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy(scripts: Sequence[str]) -> str:
    """A content security policy under which nothing but `scripts` runs and nothing is fetched."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
