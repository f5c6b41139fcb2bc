"""The base model seen through its adapter: the weights that move, the coordinates they move in, the curvature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.keys import without_result
from foretune.tasks.loading import AdapterSettings, label_caller, lora_init, lora_scale, target_weights
from foretune.tasks.samples.minibatches import minibatches

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from foretune.tasks.loading import LoadedModel
    from foretune.tasks.numerics.batches import Batch
    from foretune.tasks.numerics.curvature import CurvatureOperator
    from foretune.tasks.numerics.field import GradientField
    from foretune.tasks.numerics.objectives import Call
    from foretune.tasks.numerics.spaces import Space


class CurvatureSettings(BaseModel):
    """The curvature that influence, K_ii and sharpness share."""

    model_config = ConfigDict(extra="forbid", title="Curvature")

    version: Literal[1] = 1
    curvature: Literal["gauss_newton", "hessian"] = Field(
        "gauss_newton", title="Curvature", description="hessian is exact but may be indefinite: LiSSA may diverge"
    )
    rows: int = Field(8, ge=1, title="Curvature sample", description="training rows, chosen by id")
    max_row_tokens: int = Field(
        256, ge=2, title="Longest row of the curvature sample", description="a product's memory grows with its square"
    )
    quotients: Literal["auto", "sampled", "exact"] = Field(
        "auto",
        title="K_ii",
        description="sampled: from gradients under labels that the model draws, with an error; they are kept, so that "
        "other rows or another mean gradient cost no pass; exact: one product per tensor; auto: sampled for LoRA",
    )
    quotient_draws: int = Field(16, ge=2, title="Draws of the sampled K_ii", description="per row of the sample")
    quotient_rows: int = Field(4, ge=1, title="Rows of the exact K_ii", description="out of the curvature sample")
    power_iterations: int = Field(3, ge=1, title="Power iterations for the sharpness")
    batch_tokens: int = Field(1024, ge=1, title="Tokens per micro-batch", json_schema_extra=without_result())
    graph_tokens: int = Field(
        1024,
        ge=0,
        title="Tokens whose graph is kept between products",
        description="about 3 MB a token for a 135M model",
        json_schema_extra=without_result(),
    )

    def samples_quotients(self, adapter: AdapterSettings) -> bool:
        """Whether K_ii is sampled: a full fine-tune has no coordinates small enough to keep gradients in."""
        chosen = adapter.method == "lora" and self.curvature == "gauss_newton"
        return chosen if self.quotients == "auto" else self.quotients == "sampled"


@dataclass(frozen=True)
class AdaptedModel:
    """Base weights {name: [out, in]} of the adapted modules, their space, and logits as a function of them."""

    loaded: LoadedModel
    weights: dict[str, Tensor]
    space: Space
    call: Call

    @property
    def modules(self) -> dict[str, Any] | None:
        """The linear module of each adapted weight; None where norms, biases or embeddings move too."""
        from foretune.tasks.numerics.spaces import FullSpace

        if isinstance(self.space, FullSpace):
            return None
        return {name: self.loaded.model.get_submodule(name.removesuffix(".weight")) for name in self.weights}


def adapt(loaded: LoadedModel, adapter: AdapterSettings, seed: int) -> AdaptedModel:
    """The adapter at its initialisation: for LoRA B = 0 and A as peft draws it under `seed`."""
    weights = target_weights(loaded, adapter.targets)
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    space = space_of(shapes, adapter, seed, loaded.dtype, loaded.device)
    return AdaptedModel(loaded, weights, space, label_caller(loaded, list(weights)))


def space_of(
    shapes: dict[str, tuple[int, int]], adapter: AdapterSettings, seed: int, dtype: Any, device: Any = "cpu"
) -> Space:
    """The adapter's coordinates without a model at hand; `shapes` in the model's order, `dtype` that of the model."""
    from foretune.tasks.numerics.spaces import FullSpace, LoraSpace

    if adapter.method == "full":
        return FullSpace()
    initial = lora_init(shapes, adapter, seed, dtype)
    return LoraSpace({name: a.to(device) for name, a in initial.items()}, lora_scale(adapter))


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


def gradient_field(run: Run, nodes: list[ArtifactRef], adapted: AdaptedModel) -> GradientField:
    """The stored gradient sums of all nodes with a trained token, memory-mapped."""
    return stored_field(run, nodes, tuple(adapted.weights), adapted.loaded.device)


def stored_field(run: Run, nodes: list[ArtifactRef], names: tuple[str, ...], device: Any = "cpu") -> GradientField:
    """`gradient_field` without a model at hand."""
    from foretune.tasks.numerics.field import GradientField

    opened = [run.store.open(node) for node in nodes]
    kept = [(node, node.json("shard.json")) for node in opened]
    kept = [(node, counts) for node, counts in kept if counts["tokens"]]
    files = [node.tensor_file("gradients.safetensors") for node, _ in kept]
    return GradientField(
        names=names,
        tokens=tuple(counts["tokens"] for _, counts in kept),
        rows=tuple(counts["rows"] for _, counts in kept),
        read=lambda node, name: files[node].get_tensor(name).to(device),
    )
