"""The report: one HTML file that answers "Should I train?" and opens without a network.

All foreign text is escaped, and a content security policy lets only the page's own scripts run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from foretune.tasks.report.facts import facts
from foretune.tasks.report.settings import ReportSettings
from foretune.tasks.report.standalone import json_data, standalone_page
from foretune.tasks.report.views import PredictionView, ReportView

if TYPE_CHECKING:
    from foretune.tasks.report.charts.look import Chart


def _charts(view: ReportView, settings: ReportSettings) -> Iterator[Chart | None]:
    from foretune.tasks.report.charts import (
        behaviour,
        behaviour_path,
        calibration,
        dataset,
        features,
        layers,
        losses,
        samples,
    )

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
        measured = view.sae_diff.features if view.sae_diff else None
        leading = set(view.concepts.rows["family"]) if view.concepts else None
        yield features.concept_changes(view.features.features, measured, top, leading)
    if view.prompt_gain:
        yield samples.prompt_gains(view.prompt_gain.rows["gain"], view.prompt_gain.threshold)
    if view.influence:
        yield samples.solver_residual(view.influence.residuals, view.influence.status)
        yield samples.influence_ranking(view.influence.rows, view.influence.target, view.influence.unit)
    if view.preference:
        yield samples.preference_margins(view.preference.pairs)
        if view.preference.features is not None:
            yield features.preference_features(view.preference.features, top)
    if view.prediction:
        yield _loss_path(view.prediction)
        yield layers.curvature_map(view.prediction.layers)
        yield layers.step_size_map(view.prediction.layers)
    if view.model_diff:
        if view.model_diff.calibration is not None:
            yield calibration.reliability(view.model_diff.calibration)
        yield layers.weight_change(view.model_diff.layers)
        if view.model_diff.probes is not None:
            yield losses.probe_perplexity(view.model_diff.probes, 2 * settings.top_rows)
    if view.behaviour:
        yield behaviour.behaviour_changes([each.figures for each in view.behaviour.suites])
    if view.behaviour_path:
        yield behaviour_path.behaviour_path(view.behaviour_path.suites)


def _loss_path(prediction: PredictionView) -> Chart | None:
    from foretune.tasks.report.charts import losses

    return losses.loss_path(
        prediction.path, prediction.horizon, prediction.anchors, prediction.tolerance, prediction.base_path
    )


def build_report(view: ReportView, settings: ReportSettings | None = None) -> str:
    """The whole page as text, ready to be written as UTF-8; `settings` say how much of each list it shows."""
    from foretune.tasks.report.tables import report_tables

    settings = settings or ReportSettings()
    charts = {chart.name: chart for chart in _charts(view, settings) if chart}
    tables = report_tables(view, settings)
    from markupsafe import Markup

    rows = Markup(json_data(view.rows.data() if view.rows else None))
    return standalone_page(
        "report.html.jinja", charts, view=view, settings=settings, tables=tables, facts=facts, rows=rows
    )
