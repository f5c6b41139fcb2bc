"""The fine-tune that is being simulated: optimiser, schedule and batch, in the names of transformers' Trainer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from foretune.storage.errors import BadInput
from foretune.tasks.engine.keys import without_result

if TYPE_CHECKING:
    from foretune.tasks.numerics.optimizers import OptimizerSettings


def _with_warmup_steps(schema: dict[str, Any]) -> None:
    """The other name of the warm-up in the JSON schema, too: a deployment holds its parameters against that."""
    steps = {
        "anyOf": [{"type": "number", "minimum": 0}, {"type": "null"}],
        "default": None,
        "title": "Warm-up steps",
        "description": "a number of steps, or a share of them; goes before warmup_ratio, as in transformers",
    }
    given = schema["properties"]
    schema["properties"] = {}
    for name, field in given.items():
        schema["properties"] |= {name: field} | ({"warmup_steps": steps} if name == "warmup_ratio" else {})


class Schedule(BaseModel):
    """How many optimizer steps a run has, and the learning rate of each."""

    model_config = ConfigDict(
        extra="forbid", allow_inf_nan=False, title="Schedule", json_schema_extra=_with_warmup_steps
    )

    version: Literal[1] = 1
    learning_rate: float = Field(
        default=2e-4, gt=0, le=1e3, title="Peak learning rate", description="per optimizer step"
    )
    epochs: float = Field(default=3.0, gt=0, le=1e5, title="Epochs", description="passes over the training rows")
    batch_size: int = Field(default=8, ge=1, le=1_000_000, title="Rows per micro-batch")
    gradient_accumulation_steps: int = Field(default=1, ge=1, le=1_000_000, title="Micro-batches per optimizer step")
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        default="linear", title="Schedule"
    )
    warmup_ratio: float = Field(
        default=0.0,
        ge=0,
        le=1e9,
        title="Warm-up",
        description="share of all steps; from 1 on a number of steps, which may also be given as warmup_steps",
    )

    @model_validator(mode="before")
    @classmethod
    def _warmup_steps(cls, content: Any) -> Any:
        """transformers' other name, `warmup_steps`: it goes before the ratio, as it does there."""
        if not isinstance(content, dict) or "warmup_steps" not in content:
            return content
        kept = {name: value for name, value in content.items() if name != "warmup_steps"}
        steps, ratio = content["warmup_steps"], content.get("warmup_ratio")
        if steps == 0 and ratio:  # a dumped configuration has both; up to transformers 5.1 zero steps meant the ratio
            raise ValueError(
                "warmup_steps is 0 beside a warmup_ratio, which trainers read in two ways; give one of them"
            )
        return kept if steps is None else kept | {"warmup_ratio": steps}

    @field_validator("warmup_ratio")
    @classmethod
    def _whole_steps(cls, value: float) -> float:
        if value >= 1 and value != int(value):
            raise ValueError("give a share below 1, or a whole number of steps")
        return value

    @property
    def rows_per_step(self) -> int:
        """Rows that one optimizer step averages over."""
        return self.batch_size * self.gradient_accumulation_steps

    def whole(self, measured: int) -> int:
        """Rows of the run, `measured` of which have gradients: here all of them."""
        return measured

    def steps(self, rows: int) -> int:
        """Optimizer steps of the whole run, counted as transformers' Trainer counts them."""
        batches = math.ceil(rows / self.batch_size)
        per_epoch = max(1, math.ceil(batches / self.gradient_accumulation_steps))
        return max(1, math.ceil(self.epochs * per_epoch))

    def warmup_steps(self, rows: int) -> int:
        """Steps over which the learning rate rises linearly from zero."""
        return int(self.warmup_ratio) if self.warmup_ratio >= 1 else math.ceil(self.steps(rows) * self.warmup_ratio)

    def rates(self, rows: int) -> list[float]:
        """Learning rate of every optimizer step."""
        from foretune.tasks.numerics.schedules import learning_rates

        return learning_rates(self.lr_scheduler_type, self.learning_rate, self.steps(rows), self.warmup_steps(rows))


class TrainingSettings(Schedule):
    """What the real run would be given; nothing here is ever used to step a parameter."""

    # `objective` and `dpo_beta` reach the passes as the beta that `beta_for` makes of them, if any.

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="Training")

    objective: Literal["auto", "sft", "dpo"] = Field(
        default="auto",
        title="Objective",
        description="auto: dpo when the dataset's rows are preference pairs, else sft",
        json_schema_extra=without_result(),
    )
    optimizer: Literal["adamw", "sgd"] = Field(default="adamw", title="Optimizer")
    weight_decay: float = Field(
        default=0.0, ge=0, le=1e3, title="Weight decay", description="decoupled for adamw; norms and biases have none"
    )
    adam_beta1: float = Field(default=0.9, ge=0, lt=1, title="Adam beta 1", description="decay of the gradient's mean")
    adam_beta2: float = Field(default=0.999, ge=0, lt=1, title="Adam beta 2", description="decay of its square's mean")
    adam_epsilon: float = Field(
        default=1e-8, gt=0, le=1e3, title="Adam epsilon", description="added to the denominator"
    )
    momentum: float = Field(default=0.0, ge=0, lt=1, title="Momentum", description="sgd only")
    nesterov: bool = Field(default=False, title="Nesterov momentum", description="sgd only")
    max_grad_norm: float = Field(
        default=1.0, ge=0, le=1e30, title="Gradient clipping", description="global norm; 0 = no clipping"
    )
    dpo_beta: float = Field(
        default=0.1,
        gt=0,
        le=1e3,
        title="DPO beta",
        description="preference pairs only",
        json_schema_extra=without_result(),
    )
    seed: int = Field(
        default=42, ge=0, le=2**32 - 1, title="Seed", description="adapter initialisation and order of the rows"
    )

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> TrainingSettings:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs momentum above 0; set training.momentum, 0.9 for example")
        return self

    @property
    def schedule(self) -> Schedule:
        """The part that decides the number of steps and their rates."""
        return Schedule(**self.model_dump(include=set(Schedule.model_fields)))

    def beta_for(self, form: str) -> float | None:
        """DPO's beta when the dataset's rows make this a DPO run, else None. BadInput for DPO without pairs."""
        paired = form == "preference"
        if self.objective == "dpo" and not paired:
            raise BadInput(
                f"training.objective is dpo but the rows have the form {form}; give prompt, chosen, rejected"
            )
        return self.dpo_beta if paired and self.objective != "sft" else None

    def line(self, rows: int) -> str:
        """The run in a few words."""
        return f"{self.optimizer} {self.learning_rate:g}, {self.epochs:g} epochs = {self.steps(rows)} steps"

    def optimizer_settings(self) -> OptimizerSettings:
        """The numerics' own settings of the same optimizer."""
        from foretune.tasks.numerics.optimizers import OptimizerSettings

        return OptimizerSettings(
            name=self.optimizer,
            weight_decay=self.weight_decay,
            betas=(self.adam_beta1, self.adam_beta2),
            eps=self.adam_epsilon,
            momentum=self.momentum,
            nesterov=self.nesterov,
            max_grad_norm=self.max_grad_norm,
        )


class SampledSchedule(Schedule):
    """The schedule of a run whose rows are not all measured: it counts the steps of all `rows`."""

    rows: int = Field(ge=1)

    def steps(self, rows: int) -> int:
        return super().steps(max(rows, self.rows))

    def whole(self, measured: int) -> int:
        return max(measured, self.rows)


class SampledTraining(SampledSchedule, TrainingSettings):
    """A run whose gradients are measured on some of its `rows`: they stand for all, over all steps."""

    @property
    def schedule(self) -> SampledSchedule:
        return SampledSchedule(**self.model_dump(include=set(SampledSchedule.model_fields)))
