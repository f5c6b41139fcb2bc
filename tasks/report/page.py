"""The report of a run: every artefact gathered into one view, written as one page."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.passes import content_task
from foretune.tasks.report.answers import AnswersView, answers_view
from foretune.tasks.report.behaviour import BehaviourView, behaviour_view
from foretune.tasks.report.behaviour_path import BehaviourPathView, behaviour_path_view
from foretune.tasks.report.build import build_report
from foretune.tasks.report.causes import CausesView, causes_view
from foretune.tasks.report.circuits import TracedPrompt, circuits_view
from foretune.tasks.report.concept_causes import ConceptCausesView, opened_concept_causes
from foretune.tasks.report.differences import flat, model_diff_view, placed
from foretune.tasks.report.feature_page import ANY_RUN, FEATURES_PAGE, feature_page
from foretune.tasks.report.feature_table import READ, feature_table
from foretune.tasks.report.findings import collect, row_texts, shown_verdicts
from foretune.tasks.report.request_lines import RequestLines
from foretune.tasks.report.residual_change import residual_change_view
from foretune.tasks.report.rows import heldout_of, row_table, rows_view
from foretune.tasks.report.settings import ReportSettings
from foretune.tasks.report.supervision import SupervisionView, supervision_view
from foretune.tasks.report.views import (
    BaselineView,
    ConceptsView,
    FeaturesView,
    Header,
    InfluenceView,
    LandscapeView,
    PredictionView,
    PreferenceView,
    PromptGainView,
    QualityView,
    ReportView,
    SaeDiffView,
)


@content_task(version=8, libraries=("plotly", "jinja2", "pandas"))
def report(
    draft: Any, run: Run, names: list[str], artifacts: list[ArtifactRef], lines: RequestLines, settings: ReportSettings
) -> None:
    """report.html of the artefacts `names`, and with an SAE features.html; the run's name is put in by `publish`."""
    made = dict(zip(names, artifacts, strict=True))
    page = build_report(gathered(run, made, lines, settings), settings)
    draft.write_text("report.html", page)
    if set(READ) <= set(made):  # what the browser reads is there
        opened = {name: run.store.open(made[name]) for name in READ}
        draft.write_text(FEATURES_PAGE, feature_page(feature_table(opened, lines.neuronpedia_id), ANY_RUN))


def gathered(
    run: Run, made: dict[str, ArtifactRef], lines: RequestLines, settings: ReportSettings | None = None
) -> ReportView:
    """The view of one run; a pass that did not run has no section."""
    settings = settings or ReportSettings()
    opened = {name: run.store.open(ref) for name, ref in made.items()}
    found = collect(run, made)
    texts = row_texts(opened["samples"])
    sections = {name: build(opened, texts, lines) for name, build in SECTIONS.items() if name in opened}
    return ReportView(
        header=_header(opened, lines),
        answer=found.answer,
        reasons=found.reasons,
        signals=found.signals,
        conditions=found.conditions,
        worth=found.worth,
        rows=rows_view(row_table(opened, heldout_of(run, opened), shown_verdicts(opened)), settings.text_limit),
        saes=lines.saes,
        more_concepts=_more_concepts(opened, lines),
        **sections,
    )


def _header(opened: dict[str, Any], lines: RequestLines) -> Header:
    created = max(artifact.manifest.created for artifact in opened.values())
    return Header(
        dataset=lines.dataset,
        rows=lines.rows,
        model=lines.model,
        adapter=lines.adapter,
        training=lines.training,
        effort=lines.effort,
        created=f"{datetime.fromisoformat(created).astimezone(UTC):%Y-%m-%d %H:%M} UTC",
    )


def _supervision(opened: dict[str, Any], texts: dict[str, str], lines: RequestLines) -> SupervisionView:
    held = opened["supervision"]
    findings, sequences, tokens = (
        held.arrow(f"{name}.parquet").to_pylist() for name in ("findings", "sequences", "tokens")
    )
    return supervision_view(findings, sequences, tokens, flat(held.json("summary.json")))


def _quality(opened: dict[str, Any], texts: dict[str, str], lines: RequestLines) -> QualityView:
    samples = opened["quality"].table("samples.parquet")
    summary = opened["quality"].json("summary.json")
    return QualityView(
        samples=samples.assign(text=samples["sample_id"].map(texts), flags=samples["flags"].map(list)),
        counts=summary["counts"],
        max_length=lines.max_length,
        summary=flat(summary),
        leaks=tuple(opened["leaks"].json("summary.json")["lines"]) if "leaks" in opened else (),
    )


def _baseline(opened: dict[str, Any], texts: dict[str, str], lines: RequestLines) -> BaselineView:
    summary = opened["baseline"].json("summary.json")
    return BaselineView(opened["baseline"].table("features.parquet"), summary["active_features"], flat(summary))


def _landscape(opened: dict[str, Any], texts: dict[str, str], lines: RequestLines) -> LandscapeView:
    landscape = opened["landscape"]
    return LandscapeView(
        steps=landscape.table("steps.parquet"),
        layers=placed(landscape.table("layers.parquet")),
        spike=lines.spike_norm,
        summary=flat(landscape.json("summary.json")),
    )


def _features(opened: dict[str, Any], texts: dict[str, str], lines: RequestLines) -> FeaturesView:
    measured = opened["sae_diff"].table("features.parquet", columns=["feature", "change", "z", "beyond_noise"])
    return FeaturesView(opened["features"].table("features.parquet").merge(measured, on="feature"))


def _influence(opened: dict[str, Any], texts: dict[str, str], lines: RequestLines) -> InfluenceView:
    rows = opened["influence"].table("influence.parquet")
    solver = opened["influence"].json("solver.json")
    numbers_and_scores = zip(rows["nearest_rows"], rows["nearest_scores"], strict=True)
    nearest = [", ".join(f"{n} ({s:+.2g})" for n, s in zip(*each, strict=True)) for each in numbers_and_scores]
    tokens = opened["influence_tokens"].table("tokens.parquet") if "influence_tokens" in opened else None
    return InfluenceView(
        rows=rows.assign(
            text=rows["sample_id"].map(texts), nearest=nearest, verdict=rows["sample_id"].map(shown_verdicts(opened))
        ),
        residuals=solver.get("residuals", []),
        status=solver.get("status", ""),
        target=solver["target"],
        unit=solver["unit"],
        tokens=tokens,
        summary=flat(solver),
    )


def _prompt_gain(opened: dict[str, Any], texts: dict[str, str], lines: RequestLines) -> PromptGainView:
    gain = opened["prompt_gain"]
    summary = gain.json("summary.json")
    rows = gain.table("prompt_gain.parquet", columns=["row", "gain", "mismatched"])
    return PromptGainView(rows, summary["threshold"], flat(summary))


def _preference(opened: dict[str, Any], texts: dict[str, str], lines: RequestLines) -> PreferenceView:
    pairs, moved = opened["preference"].table("pairs.parquet"), None
    if "features" in opened:
        labels = opened["features"].table("features.parquet", columns=["feature", "label"])
        moved = opened["preference"].table("features.parquet").rename(columns={"relative": "change"})
        moved = moved.merge(labels, on="feature")
    return PreferenceView(
        pairs=pairs.assign(text=pairs["prompt"]),
        features=moved,
        summary=flat(opened["preference"].json("summary.json")),
    )


def _prediction(opened: dict[str, Any], texts: dict[str, str], lines: RequestLines) -> PredictionView:
    prediction = opened["prediction"]
    summary = prediction.json("summary.json")
    return PredictionView(
        layers=placed(prediction.table("layers.parquet")),
        path=prediction.table("path.parquet"),
        horizon=summary["trusted_steps"] if summary["horizon"] is not None else None,
        anchors=summary["anchor_steps"],
        tolerance=summary["tolerance"],
        summary=flat(summary),
        base_path=prediction.table("single_anchor.parquet") if "single_anchor.parquet" in prediction.names() else None,
    )


def _sae_diff(opened: dict[str, Any], texts: dict[str, str], lines: RequestLines) -> SaeDiffView:
    labels = opened["features"].table("features.parquet", columns=["feature", "label"])
    moved = opened["sae_diff"].table("features.parquet").merge(labels, on="feature")
    return SaeDiffView(moved, flat(opened["sae_diff"].json("summary.json")))


def _more_concepts(opened: dict[str, Any], lines: RequestLines) -> list[ConceptsView]:
    """Of every SAE beside the first, under its name."""
    return [
        ConceptsView(opened[at].table("concepts.parquet"), flat(opened[at].json("summary.json")), name)
        for number, name in enumerate(lines.more_saes, start=2)
        if (at := f"concepts_{number}") in opened
    ]


def _concepts(opened: dict[str, Any], texts: dict[str, str], lines: RequestLines) -> ConceptsView:
    concepts = opened["concepts"]
    table, browsed = concepts.table("concepts.parquet"), "feature_contexts" in opened
    return ConceptsView(table, flat(concepts.json("summary.json")), browsed=browsed)


def _behaviour(opened: dict[str, Any], texts: dict[str, str], lines: RequestLines) -> BehaviourView:
    return behaviour_view(opened["behaviour"])


def _causes(opened: dict[str, Any], texts: dict[str, str], lines: RequestLines) -> CausesView:
    effects = opened["cause_effects"].json("summary.json") if "cause_effects" in opened else None
    return causes_view(opened["causes"].json("summary.json"), effects, texts)


def _behaviour_path(opened: dict[str, Any], texts: dict[str, str], lines: RequestLines) -> BehaviourPathView:
    return behaviour_path_view(opened["behaviour_path"])


def _concept_causes(opened: dict[str, Any], texts: dict[str, str], lines: RequestLines) -> ConceptCausesView:
    return opened_concept_causes(opened)


def _circuits(opened: dict[str, Any], texts: dict[str, str], lines: RequestLines) -> list[TracedPrompt]:
    held = opened["circuits"]
    nodes, modules = (held.arrow(f"{name}.parquet").to_pylist() for name in ("nodes", "modules"))
    return circuits_view(held.json("summary.json")["prompts"], nodes, modules)


def _answers(opened: dict[str, Any], texts: dict[str, str], lines: RequestLines) -> AnswersView:
    found = opened["answers"]
    return answers_view(found.arrow("answers.parquet").to_pylist(), found.json("summary.json"))


SECTIONS = {
    "supervision": _supervision,
    "quality": _quality,
    "baseline": _baseline,
    "landscape": _landscape,
    "features": _features,
    "prompt_gain": _prompt_gain,
    "influence": _influence,
    "preference": _preference,
    "prediction": _prediction,
    "sae_diff": _sae_diff,
    "concepts": _concepts,
    "model_diff": model_diff_view,
    "behaviour": _behaviour,
    "behaviour_path": _behaviour_path,
    "causes": _causes,
    "answers": _answers,
    "circuits": _circuits,
    "concept_causes": _concept_causes,
    "residual_change": residual_change_view,
}
