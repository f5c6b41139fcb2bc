"""The curvature that influence, K_ii and sharpness share: its settings, its rows, and the operator over them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from foretune.tasks.engine.keys import without_result
from foretune.tasks.inputs.adapted import AdaptedModel
from foretune.tasks.loading import AdapterSettings
from foretune.tasks.samples.minibatches import minibatches

if TYPE_CHECKING:
    import pyarrow as pa

    from foretune.tasks.numerics.batches import Batch
    from foretune.tasks.numerics.curvature import CurvatureOperator


class CurvatureSettings(BaseModel):
    """The curvature that influence, K_ii and sharpness share."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="Curvature")

    version: Literal[1] = 1
    curvature: Literal["gauss_newton", "hessian"] = Field(
        default="gauss_newton",
        title="Curvature",
        description="hessian is exact but may be indefinite: LiSSA may diverge",
    )
    rows: int = Field(default=8, ge=1, le=100_000, title="Curvature sample", description="training rows, chosen by id")
    max_row_tokens: int = Field(
        default=256,
        ge=2,
        le=10_000_000,
        title="Longest row of the curvature sample",
        description="a product's memory grows with its square",
    )
    quotients: Literal["auto", "sampled", "exact"] = Field(
        default="auto",
        title="K_ii",
        description="sampled: from gradients under labels that the model draws, with an error; they are kept, so that "
        "other rows or another mean gradient cost no pass; exact: one product per tensor; auto: sampled for LoRA",
    )
    quotient_draws: int = Field(
        default=8,
        ge=2,
        le=100_000,
        title="Draws of the sampled K_ii",
        description="per row of the sample; its relative error is about sqrt(2 / (draws x rows))",
    )
    quotient_rows: int = Field(
        default=4, ge=1, le=100_000, title="Rows of the exact K_ii", description="out of the curvature sample"
    )
    power_iterations: int = Field(default=3, ge=1, le=10_000, title="Power iterations for the sharpness")
    batch_tokens: int = Field(
        default=1024, ge=1, le=10**8, title="Tokens per micro-batch", json_schema_extra=without_result()
    )
    graph_tokens: int = Field(
        default=1024,
        ge=0,
        le=10**8,
        title="Tokens whose graph is kept between products",
        description="about 3 MB a token for a 135M model",
        json_schema_extra=without_result(),
    )

    def samples_quotients(self, adapter: AdapterSettings) -> bool:
        """Whether K_ii is sampled: a full fine-tune has no coordinates small enough to keep gradients in."""
        chosen = adapter.method == "lora" and self.curvature == "gauss_newton"
        return chosen if self.quotients == "auto" else self.quotients == "sampled"


def curvature_batches(adapted: AdaptedModel, table: pa.Table, settings: CurvatureSettings) -> list[Batch]:
    """The curvature sample as micro-batches on the model's device."""
    return [m.batch for m in minibatches(table, settings.batch_tokens, adapted.loaded.device)]


def curvature_operator(adapted: AdaptedModel, table: pa.Table, settings: CurvatureSettings) -> CurvatureOperator:
    """H of the token-mean cross-entropy over the rows of `table` (chosen answers, for preference pairs)."""
    from foretune.tasks.numerics import curvature

    batches = curvature_batches(adapted, table, settings)
    extra: dict[str, Any] = {"graph_tokens": settings.graph_tokens}
    if settings.curvature == "hessian":
        return curvature.hessian(adapted.call, adapted.weights, adapted.space, batches, **extra)
    return curvature.gauss_newton(adapted.call, adapted.weights, adapted.space, batches, **extra)
