"""The request: one pydantic model that is the Prefect parameter, the YAML file and the manifest's record."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from typing import Any, Literal

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from foretune.flows.documents import parse_document, read_document
from foretune.flows.form import in_declared_order
from foretune.storage.errors import BadInput
from foretune.tasks.checkpoint.checkpoint import CheckpointSettings
from foretune.tasks.concepts.baseline import BaselineSettings
from foretune.tasks.concepts.features import FeatureSettings
from foretune.tasks.concepts.preference import PreferenceSettings
from foretune.tasks.engine.keys import without_result
from foretune.tasks.influence.settings import InfluenceSettings
from foretune.tasks.inputs.curvature import CurvatureSettings
from foretune.tasks.inputs.training import TrainingSettings
from foretune.tasks.inspection.settings import DiffSettings
from foretune.tasks.landscape.landscape import LandscapeSettings
from foretune.tasks.landscape.prompt_gain import PromptGainSettings
from foretune.tasks.landscape.signals import SignalThresholds
from foretune.tasks.loading import AdapterSettings, ModelSettings
from foretune.tasks.prediction.settings import PredictionSettings
from foretune.tasks.quality.settings import QualitySettings
from foretune.tasks.report.settings import ReportSettings
from foretune.tasks.saes import SaeSettings
from foretune.tasks.samples.shards import ShardSettings
from foretune.tasks.samples.table import DatasetSettings


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


class Request(BaseModel):
    """What would fine-tuning this model on this dataset do?"""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="foretune request")

    version: Literal[1] = 1
    name: str | None = Field(
        default=None, title="Name", description="part of the run id; default: the dataset's file name"
    )
    dataset: DatasetSettings
    model: ModelSettings
    sae: SaeSettings | None = Field(default=None, title="Sparse autoencoder", description="none: no concepts are named")
    adapter: AdapterSettings = AdapterSettings()
    training: TrainingSettings = TrainingSettings()
    shards: ShardSettings = ShardSettings()
    quality: QualitySettings = QualitySettings()
    baseline: BaselineSettings = BaselineSettings()
    landscape: LandscapeSettings = LandscapeSettings()
    thresholds: SignalThresholds = Field(default=SignalThresholds(), title="Signals of the landscape")
    features: FeatureSettings = FeatureSettings()
    prompt_gain: PromptGainSettings = PromptGainSettings()
    curvature: CurvatureSettings = CurvatureSettings()
    influence: InfluenceSettings = InfluenceSettings()
    preference: PreferenceSettings = PreferenceSettings()
    prediction: PredictionSettings = PredictionSettings()  # pyright: ignore[reportCallIssue]
    checkpoint: CheckpointSettings = CheckpointSettings()
    diff: DiffSettings = Field(default=DiffSettings(), title="Base and predicted model")
    report: ReportSettings = ReportSettings()
    runtime: RuntimeSettings = RuntimeSettings()

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return in_declared_order(core_schema, handler)

    @model_validator(mode="after")
    def _sampled_quotients_need_linear_modules(self) -> Request:
        if self.adapter.method == "full" and self.curvature.quotients == "sampled":
            raise ValueError("curvature.quotients sampled needs adapter.method lora; set it to auto or exact")
        return self

    @property
    def run_name(self) -> str:
        """The middle of the run's id."""
        return self.name or self.dataset.path.rsplit("/", 1)[-1].split(".")[0]

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
    content = read_document(uri, "request")
    if not isinstance(content, dict):
        raise BadInput(f"request {uri}: the file holds no mapping; start from examples/demo/request.yaml")
    for override in overrides or []:
        apply_override(content, override)
    return parse_request(content, where=uri)


def parse_request(content: dict[str, Any], where: str = "request") -> Request:
    """Validate a mapping; the first fault is reported with its place and, for unknown keys, the nearest key."""
    for path, value in _numbers(content):
        if not math.isfinite(value):
            raise BadInput(f"{where}: {path} is {value}; give a finite number")
    try:
        return Request.model_validate(content)
    except pydantic.ValidationError as error:
        raise BadInput(f"{where}: {explain(error)}") from None


def _numbers(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every float of the request with its place."""
    if isinstance(value, float):
        yield path, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _numbers(inner, f"{path}.{name}" if path else str(name))


def explain(error: pydantic.ValidationError) -> str:
    """The first validation fault as one line: where, what, the remedy."""
    fault = error.errors(include_url=False)[0]
    path = ".".join(str(part) for part in fault["loc"]) or "request"
    if fault["type"] == "extra_forbidden":
        parent, known = _fields_at(fault["loc"][:-1])
        nearest = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1, cutoff=0.0)
        return f"unknown key {path}; the nearest key is {'.'.join([*parent, *nearest])}"
    if fault["type"] == "missing":
        return f"{path} is missing; add it to the request"
    message, given = fault["msg"].removeprefix("Value error, "), fault.get("input")
    shown = "" if isinstance(given, dict | list) else f" (got {given!r})"
    return f"{path}: {message[0].lower()}{message[1:]}{shown}"


def _fields_at(location: tuple[int | str, ...]) -> tuple[list[str], list[str]]:
    model, path = Request, []
    for part in location:
        field = model.model_fields.get(str(part))
        if field is None:
            break
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not inner:
            break
        model = inner[0]
        path.append(str(part))
    return path, list(model.model_fields)


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
    except yaml.YAMLError:
        raise BadInput(f"--set {override}: the value is not valid YAML; as in a.b=[q_proj, v_proj]") from None


def _scalar(text: str) -> Any:
    value = parse_document(text)
    if isinstance(value, str):
        try:
            return float(value)  # YAML 1.1 reads 1e-4 as a string
        except ValueError:
            return value
    return value


def to_yaml(request: Request) -> str:
    """The complete request, defaults included, as it is stored beside a run."""
    return yaml.safe_dump(request.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
