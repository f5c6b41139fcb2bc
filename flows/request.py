"""The request: one pydantic model that is the Prefect parameter, the YAML file and the manifest's record."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator
from typing import Any, Literal

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from foretune.flows.effort import EffortSettings
from foretune.flows.form import folded, in_declared_order
from foretune.flows.settings_files import first_fault, read_settings
from foretune.storage.documents import yaml_mapping, yaml_value
from foretune.storage.errors import BadInput
from foretune.storage.events import run_status
from foretune.storage.redaction import by_form
from foretune.storage.runs import Run
from foretune.tasks.behaviour.answer_settings import AnswerSettings
from foretune.tasks.behaviour.settings import BehaviourSettings
from foretune.tasks.checkpoint.checkpoint import CheckpointSettings
from foretune.tasks.circuits.cause_settings import ConceptEffectSettings
from foretune.tasks.circuits.settings import CircuitSettings
from foretune.tasks.concepts.baseline import BaselineSettings
from foretune.tasks.concepts.preference import PreferenceSettings
from foretune.tasks.concepts.settings import ConceptSettings
from foretune.tasks.engine.keys import without_result
from foretune.tasks.influence.settings import InfluenceSettings
from foretune.tasks.inputs.curvature import CurvatureSettings
from foretune.tasks.inputs.training import TrainingSettings
from foretune.tasks.inspection.residual_settings import ResidualSettings
from foretune.tasks.inspection.settings import ModelDiffSettings
from foretune.tasks.landscape.landscape import LandscapeSettings
from foretune.tasks.landscape.prompt_gain import PromptGainSettings
from foretune.tasks.landscape.signals import SignalThresholds
from foretune.tasks.loading import AdapterSettings, ModelSettings
from foretune.tasks.prediction.settings import PredictionSettings
from foretune.tasks.quality.settings import QualitySettings
from foretune.tasks.report.settings import ReportSettings
from foretune.tasks.saes import SaeSettings
from foretune.tasks.samples.shards import ShardSettings
from foretune.tasks.samples.supervision_settings import SupervisionSettings
from foretune.tasks.samples.table import DatasetSettings

NO_CREDENTIALS = (
    "a request is stored as it is: take them out and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
    "AWS_PROFILE or HF_TOKEN"
)


class RuntimeSettings(BaseModel):
    """Where and how wide the passes run; never part of a key."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="Runtime")

    version: Literal[1] = 1
    root: str = Field(default="./.foretune", title="Storage root", description="folder or s3://bucket/prefix")
    verify: Literal["sizes", "full"] = Field(
        default="sizes",
        title="Check of what is stored",
        description="before it counts as stored; full: every file is read and hashed, else when it is opened",
    )
    runner: Literal["threads", "ray"] = Field(
        default="threads", title="Task runner", description="ray: over many machines"
    )
    max_workers: int = Field(default=2, ge=1, le=64, title="Tasks at once", description="on this machine")
    pass_minutes: float | None = Field(
        default=2880,
        gt=0,
        le=525_600,
        title="Time limit",
        description="minutes that one task may compute; none: no limit",
    )
    max_steps: int = Field(
        default=5_000_000,
        ge=1,
        le=10**12,
        title="Most steps",
        description="of the optimizer in the run that is predicted, and in all replays of influence together",
        json_schema_extra=without_result(),
    )
    max_dataset_gb: float = Field(
        default=8,
        gt=0,
        le=1e6,
        title="Largest dataset file",
        description="GB; all rows of a file are held in memory",
        json_schema_extra=without_result(),
    )
    max_attention_gb: float = Field(
        default=64,
        gt=0,
        le=1e6,
        title="Largest attention",
        description="GB of one layer's attention scores over the longest row; eager attention forms them",
        json_schema_extra=without_result(),
    )
    ray_address: str | None = Field(
        default=None,
        title="Ray cluster",
        description="host:port or ray://host:port; none: RAY_ADDRESS, else this machine",
    )
    ray_cpus: float = Field(
        default=1, gt=0, le=10_000, title="Processors per task", description="that Ray sets aside for it"
    )
    ray_gpus: float = Field(
        default=0, ge=0, le=10_000, title="GPUs per task", description="that Ray sets aside for one with a model"
    )


USUAL = {
    "dataset": ("path", "heldout", "max_length"),
    "model": ("name_or_path",),
    "sae": ("path", "labels"),
    "adapter": ("r", "target_modules"),
    "training": ("learning_rate", "epochs", "batch_size"),
    "runtime": ("root",),
}
"""With the name, the dozen settings that people change: a form shows them and folds the rest."""


class Request(BaseModel):
    """What would fine-tuning this model on this dataset do?"""

    # What is refused may be a secret, and Prefect shows the error of a parameter.
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="foretune request", hide_input_in_errors=True)

    version: Literal[1] = 1
    name: str | None = Field(
        default=None, title="Name", description="part of the run id; default: the dataset's file name"
    )
    dataset: DatasetSettings
    model: ModelSettings
    sae: SaeSettings | None = Field(default=None, title="Sparse autoencoder", description="none: no concepts are named")
    adapter: AdapterSettings = AdapterSettings()
    training: TrainingSettings = TrainingSettings()
    effort: EffortSettings = EffortSettings()
    shards: ShardSettings = ShardSettings()
    supervision: SupervisionSettings = SupervisionSettings()
    quality: QualitySettings = QualitySettings()
    baseline: BaselineSettings = BaselineSettings()
    landscape: LandscapeSettings = LandscapeSettings()
    thresholds: SignalThresholds = Field(default=SignalThresholds(), title="Signals of the landscape")
    features: ConceptSettings = ConceptSettings()
    prompt_gain: PromptGainSettings = PromptGainSettings()
    curvature: CurvatureSettings = CurvatureSettings()
    influence: InfluenceSettings = InfluenceSettings()
    preference: PreferenceSettings = PreferenceSettings()
    prediction: PredictionSettings = PredictionSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    diff: ModelDiffSettings = Field(default=ModelDiffSettings(), title="Base and predicted model")
    residual_change: ResidualSettings = ResidualSettings()
    answers: AnswerSettings = AnswerSettings()
    behaviour: BehaviourSettings = BehaviourSettings()
    circuits: CircuitSettings = CircuitSettings()
    concept_causes: ConceptEffectSettings = ConceptEffectSettings()
    report: ReportSettings = ReportSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    saes: list[SaeSettings] = Field(
        default=[],
        max_length=16,
        title="More sparse autoencoders",
        description="read beside that of sae: other hook points, other dictionaries",
    )

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = in_declared_order(core_schema, handler)
        folded(schema, handler, USUAL)
        return schema

    @model_validator(mode="before")
    @classmethod
    def _folded_sections_have_their_defaults(cls, content: Any) -> Any:
        """A form sends null for a section that nobody opened, and YAML has it for one without a line."""
        if not isinstance(content, dict):
            return content
        filled = {name for name, field in cls.model_fields.items() if isinstance(field.default, BaseModel)}
        return {name: value for name, value in content.items() if value is not None or name not in filled}

    @model_validator(mode="after")
    def _sampled_quotients_need_linear_modules(self) -> Request:
        if self.adapter.method == "full" and self.curvature.quotients == "sampled":
            raise ValueError("curvature.quotients sampled needs adapter.method lora; set it to auto or exact")
        return self

    @model_validator(mode="after")
    def _more_saes_follow_one(self) -> Request:
        if self.saes and self.sae is None:
            raise ValueError("saes are read beside sae; give the first of them as sae")
        return self

    @model_validator(mode="after")
    def _no_credentials(self) -> Request:
        found = next((p for p, v in _leaves(self.model_dump()) if isinstance(v, str) and by_form(v) != v), None)
        if found:
            raise ValueError(f"{found} carries credentials; {NO_CREDENTIALS}")
        return self

    @property
    def run_name(self) -> str:
        """The middle of the run's id."""
        return self.name or self.dataset.path.rsplit("/", 1)[-1].split(".")[0]

    def dataset_at(self, other: str | None) -> str:
        """The place of the dataset: another one where it is given, else the request's own. BadInput for an empty text.

        A variable that nobody set, or an event without a place, comes as one, and does not mean the request's own.
        """
        if other is not None and not other.strip():
            raise BadInput("dataset: an empty place; give a file, a folder or a glob, or leave it out")
        return other or self.dataset.path

    def adapter_line(self) -> str:
        """The adapter in a few words."""
        adapter = self.adapter
        if adapter.method == "full":
            return "full fine-tune"
        targets = adapter.target_modules
        return f"LoRA r={adapter.r} on {targets if isinstance(targets, str) else ', '.join(targets)}"

    def line(self) -> str:
        """The request in one line."""
        training = self.training
        return (
            f"{self.dataset.path.rsplit('/', 1)[-1]} · {self.model.name_or_path.rsplit('/', 1)[-1]} · "
            f"{self.adapter_line()} · {training.optimizer} {training.learning_rate:g}, {training.epochs:g} epochs"
        )


def load_request(uri: str, overrides: list[str] | None = None) -> Request:
    """Read a request from YAML and apply `a.b=value` overrides; every fault is one BadInput line."""
    content = read_settings(uri, "request")
    for override in overrides or []:
        apply_override(content, override)
    return parse_request(with_rules(content), where=uri)


def with_rules(content: dict[str, Any]) -> dict[str, Any]:
    """A request with the rules of the file that `quality.rules` names written out: workers need not see that file, and
    what a key is made of is what it says. The request's own settings come before the file's; lists are joined."""
    quality = content.get("quality")
    path = quality.get("rules") if isinstance(quality, dict) else None
    if not isinstance(quality, dict) or not isinstance(path, str):
        return content
    merged = read_settings(path, "rules")
    if "rules" in merged:
        raise BadInput(f"rules {path}: a file of rules names no other; take rules out")
    for name, value in quality.items():
        earlier = merged.get(name)
        merged[name] = [*earlier, *value] if isinstance(earlier, list) and isinstance(value, list) else value
    return {**content, "quality": merged}


def parse_request(content: dict[str, Any], where: str = "request") -> Request:
    """Validate a mapping; the first fault is reported with its place and, for unknown keys, the nearest key."""
    for path, value in _leaves(content):
        if isinstance(value, float) and not math.isfinite(value):
            raise BadInput(f"{where}: {path} is {value}; give a finite number")
        if isinstance(value, str) and by_form(value) != value:
            raise BadInput(f"{where}: {path} carries credentials; {NO_CREDENTIALS}")
    try:
        return Request.model_validate(content)
    except pydantic.ValidationError as error:
        raise BadInput(f"{where}: {first_fault(error, Request, 'request')}") from None


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of the request that holds no other, with its place."""
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(inner, f"{path}.{name}" if path else str(name))
    else:
        yield path, value


def apply_override(content: dict[str, Any], override: str) -> None:
    """Set `a.b=value` in place; the value is read as YAML."""
    path, separator, value = override.partition("=")
    if not separator or not path:
        raise BadInput(f"--set {override}: not of the form a.b=value; for example training.learning_rate=1e-4")
    at = content
    *parents, last = path.split(".")
    for parent in parents:
        at = at.setdefault(parent, {})
        if not isinstance(at, dict):
            raise BadInput(f"--set {override}: {parent} is not a section; give the path of a setting")
    try:
        at[last] = _scalar(value)
    except BadInput:
        raise BadInput(f"--set {override}: the value is not valid YAML; as in a.b=[q_proj, v_proj]") from None


def _scalar(text: str) -> Any:
    value = yaml_value(text, "--set")
    if text.strip()[:1] in ("'", '"'):
        return value
    if isinstance(value, datetime.date):  # a datetime is one too
        return text.strip()
    if isinstance(value, str):
        try:
            return float(value)  # YAML 1.1 reads 1e-4 as a string
        except ValueError:
            return text.strip()  # YAML takes what follows " #" for a comment: in a path it is none
    return value


def to_yaml(request: Request) -> str:
    """The complete request, defaults included, as it is stored beside a run."""
    return yaml.safe_dump(request.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def stored_request(run: Run) -> Request:
    """The request that a run keeps beside it, every default filled in. BadInput when there is none that is whole."""
    where = f"request of run {run.run_id}"
    try:
        text = run.read_request()
    except FileNotFoundError:
        raise BadInput(f"run {run.run_id} has no request ({run_status(run)}); simulate it again") from None
    return parse_request(yaml_mapping(text, where, "simulate it again"), where=where)
