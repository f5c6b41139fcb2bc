"""How the delta is predicted, bounded and checked."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from foretune.tasks.engine.keys import without_result

LEAST_AGAIN = 0.5
"""Of the rows, measured again wherever the base field is not trusted to the run's end, whatever the real run's own
number. Two epochs of 96 rows, 24 steps: cosine 0.80 without, 0.996 with 35 rows at three anchors."""


PORTION_ROWS, FEWEST_PORTION_ROWS = 16, 4
"""Of a gradient block, measured at an anchor on a budget, as nearly as equal parts allow: blocks of thousands of rows
hold more, and few rows at many steps are nearer than many at few. Fewer where these would leave segments longer than
SHORT_SEGMENT steps: 52 rows along 375 steps have cosine 0.52 and 0.74 of the loss drop by fours, 0.45 and -0.05 by
thirteens."""

SHORT_SEGMENT = 25
"""Steps below which more anchors of fewer rows gained nothing over 4,000 rows."""


class PathSettings(BaseModel):
    """Where gradients are measured along the predicted path, and where the loss is evaluated."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="Path")

    version: Literal[1] = 1
    path_points: int = Field(default=4, ge=1, le=64, title="Evaluated steps of the predicted path")
    tolerance: float = Field(
        default=0.05, gt=0, le=1e6, title="Tolerance", description="nats between predicted and evaluated loss"
    )
    anchors: Literal["auto"] | Annotated[int, Field(ge=1, le=10_000)] = Field(
        default="auto",
        title="Anchors",
        description="where gradients are measured: 1 = the base only; auto: again where the base is not trusted",
    )
    max_anchors: int = Field(
        default=17, ge=1, le=10_000, title="Most anchors", description="of auto, the base included"
    )
    gradient_budget: float = Field(
        default=0.5,
        gt=0,
        le=1e6,
        title="Gradient budget",
        description="share of the real run's gradient samples, the base's included; along the path half a pass is "
        "measured in any case",
    )
    gradient_passes: float = Field(
        default=2.0,
        ge=0,
        le=1e6,
        title="Passes measured again",
        description="of auto: most gradient samples, as passes over the rows",
    )
    batch_tokens: int = Field(
        default=1024, ge=1, le=10**8, title="Tokens per micro-batch", json_schema_extra=without_result()
    )

    @property
    def most_evaluations(self) -> int | None:
        """Of the held-out rows, at anchors; None: at every second one."""
        return None

    @property
    def to_the_last(self) -> bool:
        """Whether anchors are as many as take all rows that are paid for."""
        return False

    def portions(self, rows: int, blocks: int, again: int, steps: int) -> int:
        """Equal parts of a gradient block, one of which is measured at an anchor; `again` of the `rows` are measured
        along so many steps."""
        return 1

    def rows_again(self, rows: int, real: float) -> int:
        """Most rows measured again along the path, beside `rows` at the base; `real` are the gradient samples of the
        real run."""
        paid = max(int(self.gradient_budget * real) - rows, int(LEAST_AGAIN * rows))
        return min(paid, int(self.gradient_passes * rows))


class SparingPathSettings(PathSettings):
    """The same on a budget: the held-out rows are looked at less often, no row that is paid for is left over, the
    means of few rows are steadied, and of blocks of many rows parts are measured."""

    version: Literal[6] = 6  # pyright: ignore[reportIncompatibleVariableOverride]
    evaluations: int = Field(ge=1, le=10_000)

    @property
    def most_evaluations(self) -> int | None:
        return self.evaluations

    @property
    def to_the_last(self) -> bool:
        return True

    def portions(self, rows: int, blocks: int, again: int, steps: int) -> int:
        each = min(PORTION_ROWS, max(FEWEST_PORTION_ROWS, again * SHORT_SEGMENT / steps))
        return max(1, round(rows / blocks / each))


class PredictionSettings(PathSettings):
    """How the delta is predicted, bounded and checked."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="Prediction")

    rule: Literal["recursion", "rayleigh"] = Field(
        default="recursion", title="Rule", description="rayleigh: the closed form eta T / (K_ii + lambda) x gradient"
    )
    rayleigh_lambda: float = Field(default=0.01, gt=0, le=1e12, title="lambda of the closed form")
    max_relative_change: float = Field(
        default=0.25,
        gt=0,
        le=1e6,
        title="Clip",
        description="largest norm of a tensor's delta, as a share of the tensor's norm",
    )
    sharp: float = Field(default=10.0, gt=0, le=1e30, title="Sharp above", description="largest curvature eigenvalue")
    evaluation_rows: int = Field(
        default=24, ge=1, le=1_000_000, title="Held-out rows evaluated along the path", description="chosen by id"
    )
    evaluations: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        title="Most evaluations along the path",
        description="of the held-out rows at anchors, gradients too; none: at every second anchor",
        json_schema_extra=without_result(),  # what is measured depends on it by `path`
    )
    along: str | None = Field(
        default=None,
        title="Along an earlier run",
        description="a run whose measured path serves this one where it can: its id or latest, the newest of this "
        "name; none: gradients are measured along the run's own path",
        json_schema_extra=without_result(),
    )

    @property
    def most_evaluations(self) -> int | None:
        return self.evaluations

    @property
    def path(self) -> PathSettings:
        """The part that decides what is measured."""
        whole = self.model_dump(include=set(PathSettings.model_fields) - {"version"})
        if self.evaluations is None:
            return PathSettings(**whole)
        return SparingPathSettings(**whole, evaluations=self.evaluations)

    @property
    def measures_again(self) -> bool:
        """Whether gradients may be measured again along the path."""
        return self.rule == "recursion" and self.anchors != 1
