"""The report: one HTML file that answers "Should I train?" and opens without a network.

All foreign text is escaped, and a content security policy lets only the page's own scripts run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tasks.views import ReportView

if TYPE_CHECKING:
    from tasks.charts.look import Chart

_TEMPLATES = Path(__file__).parent / "templates"


class ReportSettings(BaseModel):
    """How much of each list the report shows; the artefacts keep everything."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="Report")

    version: Literal[1] = 1
    top_features: int = Field(12, ge=1, le=50, title="Features per direction")
    top_rows: int = Field(12, ge=1, le=100, title="Rows per end of a ranking")
    text_limit: int = Field(1500, ge=100, le=20_000, title="Characters shown of a row's text")


def _charts(view: ReportView, settings: ReportSettings) -> Iterator[Chart | None]:
    from tasks.charts import dataset, features, layers, losses, samples, timeline

    top = settings.top_features
    if view.quality:
        yield dataset.dataset_flags(view.quality.counts)
        yield dataset.row_lengths(view.quality.samples, view.quality.max_length)
    if view.baseline:
        yield features.firing_rates(view.baseline.features["firing_rate"])
    if view.landscape:
        yield losses.gradient_norms(view.landscape.steps, view.landscape.spike)
        yield layers.layer_norms(view.landscape.layers)
    if view.features:
        yield features.moving_features(view.features.features, top)
    if view.influence:
        yield samples.solver_residual(view.influence.residuals, view.influence.status)
        yield samples.influence_ranking(view.influence.rows)
    if view.preference:
        yield samples.preference_margins(view.preference.pairs)
        if view.preference.features is not None:
            yield features.preference_features(view.preference.features, top)
    if view.prediction:
        yield losses.loss_path(view.prediction.path, view.prediction.horizon, view.prediction.anchors)
        yield layers.curvature_map(view.prediction.layers)
        yield layers.step_size_map(view.prediction.layers)
    if view.sae_diff:
        yield features.feature_change(view.sae_diff.features, top)
        if view.features:
            yield features.feature_agreement(view.features.features, view.sae_diff.features)
    if view.model_diff:
        yield layers.weight_change(view.model_diff.layers)
        if view.model_diff.probes is not None:
            yield losses.probe_perplexity(view.model_diff.probes, 2 * settings.top_rows)
    yield timeline.timeline(view.timeline)


def _payload(charts: Mapping[str, Chart]) -> str:
    """JSON of the figures, without any character that means something to an HTML parser."""
    figures = {name: json.loads(chart.figure.to_json(engine="json")) for name, chart in charts.items()}
    text = json.dumps(figures, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _number(value: Any) -> str:
    """A number as people read it: four significant digits, thousands separated, a dash for nothing."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-" if value is None or math.isnan(value) else ("∞" if value > 0 else "-∞")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"
    return str(value)


def _signed(value: float | None) -> str:
    """A change: three significant digits and always a sign."""
    return _number(value) if value is None or not math.isfinite(value) else f"{value:+.3g}"


def _policy(scripts: Sequence[str]) -> str:
    """A content security policy under which nothing but `scripts` runs and nothing is fetched."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def build_report(view: ReportView, settings: ReportSettings | None = None) -> str:
    """The whole page as text, ready to be written as UTF-8; `settings` say how much of each list it shows."""
    import jinja2
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    from tasks.charts.look import visible
    from tasks.tables import report_tables

    settings = settings or ReportSettings()
    charts = {chart.name: chart for chart in _charts(view, settings) if chart}
    scripts = [get_plotlyjs(), (_TEMPLATES / "report.js").read_text(encoding="utf-8")]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Markup is our own; any other text may come from the dataset.
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.filters |= {"number": _number, "signed": _signed}
    page = environment.get_template("report.html.jinja").render(
        view=view,
        settings=settings,
        charts=charts,
        tables=report_tables(view, settings),
        payload=Markup(_payload(charts)),
        scripts=[Markup(script) for script in scripts],
        policy=Markup(_policy(scripts)),
        style=Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8")),
    )
    return page.lstrip()  # what the macros leave before the doctype
