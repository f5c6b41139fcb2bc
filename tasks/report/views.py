"""What the report shows, as plain data and data frames: a section that is None was not part of the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from foretune.tasks.report.answers import AnswersView
from foretune.tasks.report.behaviour import BehaviourView
from foretune.tasks.report.behaviour_path import BehaviourPathView
from foretune.tasks.report.causes import CausesView
from foretune.tasks.report.circuits import TracedPrompt
from foretune.tasks.report.concept_causes import ConceptCausesView
from foretune.tasks.report.conditions import Condition, Worth
from foretune.tasks.report.residual_change import ResidualChangeView
from foretune.tasks.report.rows import RowsView
from foretune.tasks.report.supervision import SupervisionView

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Header:
    dataset: str
    rows: int
    model: str
    adapter: str  # "LoRA r=8 on q_proj, v_proj"
    training: str  # "AdamW 2e-4, 3 epochs = 36 steps"
    created: str
    effort: str | None = None  # what was looked at, where a budget bounds it


def _columns(*names: str) -> dict[str, tuple[str, ...]]:
    """Metadata of a data frame field: the columns that it must hold."""
    return {"columns": names}


@dataclass(frozen=True)
class _Section:
    def __post_init__(self) -> None:
        for each in fields(self):
            held = getattr(self, each.name)
            needed = each.metadata.get("columns", ()) if held is not None else ()
            missing = [column for column in needed if held is not None and column not in held.columns]
            if held is not None and missing:
                where = f"{type(self).__name__}.{each.name}"
                raise ValueError(f"{where} lacks the columns {missing}; it has {list(held.columns)}")


@dataclass(frozen=True)
class QualityView(_Section):
    samples: DataFrame = field(
        metadata=_columns("sample_id", "row", "tokens", "trained_tokens", "flags", "duplicate_of", "text")
    )  # flags: list of rule names; duplicate_of: sample_id or None
    counts: Mapping[str, int]  # rule -> rows flagged
    max_length: int | None = None  # tokens
    summary: Mapping[str, Any] = field(default_factory=dict)
    leaks: tuple[str, ...] = ()  # what stands elsewhere, a line a file


@dataclass(frozen=True)
class BaselineView(_Section):
    features: DataFrame = field(metadata=_columns("feature", "firing_rate"))
    active: int
    summary: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LandscapeView(_Section):
    steps: DataFrame = field(metadata=_columns("step", "loss", "mean_grad_norm", "max_grad_norm"))
    layers: DataFrame = field(metadata=_columns("module", "layer", "kind", "mean", "max", "dead"))
    spike: float | None = None  # gradient norm that raises the spike warning
    summary: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FeaturesView(_Section):
    features: DataFrame = field(
        metadata=_columns("feature", "label", "base_act", "score", "predicted_change", "dormant")
    )
    summary: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class InfluenceView(_Section):
    rows: DataFrame = field(
        metadata=_columns("row", "score", "z", "rank", "verdict", "outlier", "nearest", "text")
    )  # score: in `unit` of `target`, for a loss negative helps; nearest: the held-out rows it moves most, in words
    residuals: Sequence[float]  # one per LiSSA iteration; none where the solve was not asked for
    status: str
    target: str = "held-out loss"
    unit: str = "nats per token"
    tokens: DataFrame | None = field(default=None, metadata=_columns("position", "token", "label", "share"))
    summary: Mapping[str, Any] = field(default_factory=dict)  # scale, damping, effective_damping, method


@dataclass(frozen=True)
class PromptGainView(_Section):
    rows: DataFrame = field(metadata=_columns("row", "gain", "mismatched"))  # gain: nats per answer
    threshold: float
    summary: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PreferenceView(_Section):
    pairs: DataFrame = field(metadata=_columns("margin_raw", "margin_per_token", "margin_reference", "text"))
    features: DataFrame | None = field(
        default=None, metadata=_columns("feature", "label", "change")
    )  # relative to fine-tuning
    summary: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PredictionView(_Section):
    layers: DataFrame = field(metadata=_columns("module", "layer", "kind", "K_ii", "eta_eff", "norm", "clipped"))
    path: DataFrame = field(metadata=_columns("step", "predicted_loss", "evaluated_loss"))
    horizon: int | None = None  # last trusted step; None = the whole run
    anchors: Sequence[int] = ()  # steps at which the gradient field was measured
    tolerance: float = 0.0  # nats
    summary: Mapping[str, Any] = field(default_factory=dict)
    base_path: DataFrame | None = None  # as `path`, of the base gradients alone, where that was followed first


@dataclass(frozen=True)
class SaeDiffView(_Section):
    features: DataFrame = field(metadata=_columns("feature", "label", "base", "new", "change", "z", "beyond_noise"))
    summary: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ConceptsView(_Section):
    rows: DataFrame = field(
        metadata=_columns(
            "feature", "label", "label_source", "confidence", "tested", "verdict", "change", "error", "z", "fires_base",
            "fires_new", "beyond_noise", "family", "members", "score", "predicted_change",
        )
    )  # fmt: skip
    summary: Mapping[str, Any] = field(default_factory=dict)
    sae: str = ""
    browsed: bool = False  # whether the page of the features lies beside the report


@dataclass(frozen=True)
class ModelDiffView(_Section):
    layers: DataFrame = field(metadata=_columns("module", "layer", "kind", "norm_base", "norm_new", "delta_norm"))
    probes: DataFrame | None = field(default=None, metadata=_columns("text", "perplexity_base", "perplexity_new", "kl"))
    summary: Mapping[str, Any] = field(default_factory=dict)
    directions: DataFrame | None = field(
        default=None, metadata=_columns("module", "rank", "side", "singular_value", "share", "promoted", "suppressed")
    )
    calibration: DataFrame | None = field(
        default=None, metadata=_columns("set", "model", "tokens", "confidence", "accuracy")
    )
    worst: Sequence[Mapping[str, Any]] = ()  # label tokens of largest KL over all sets, in context
    which: str = ""  # whether the held-out rows are those that the prediction evaluates
    storage: str = ""  # where the checkpoint's dtype rounds the predicted weights


@dataclass(frozen=True)
class ReportView:
    """Everything that the report shows."""

    header: Header
    answer: str  # "Yes", "Yes, with care" or "Not yet"
    reasons: Sequence[str]
    signals: Sequence[Mapping[str, Any]] = ()  # name, severity, value, threshold, advice
    conditions: Sequence[Condition] = ()
    worth: Worth | None = None
    rows: RowsView | None = None
    supervision: SupervisionView | None = None
    quality: QualityView | None = None
    prompt_gain: PromptGainView | None = None
    baseline: BaselineView | None = None
    landscape: LandscapeView | None = None
    features: FeaturesView | None = None
    influence: InfluenceView | None = None
    preference: PreferenceView | None = None
    prediction: PredictionView | None = None
    sae_diff: SaeDiffView | None = None
    concepts: ConceptsView | None = None
    model_diff: ModelDiffView | None = None
    answers: AnswersView | None = None
    behaviour: BehaviourView | None = None
    behaviour_path: BehaviourPathView | None = None
    causes: CausesView | None = None
    circuits: Sequence[TracedPrompt] = ()
    concept_causes: ConceptCausesView | None = None
    residual_change: ResidualChangeView | None = None
    saes: str = ""  # which are read, and what was chosen where the request left it open
    more_concepts: Sequence[ConceptsView] = ()  # of the SAEs beside the first
