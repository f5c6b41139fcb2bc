"""The base model seen through its adapter: the weights that move, the coordinates they move in, the curvature."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foretune.tasks.loading import AdapterSettings, label_caller, lora_init, lora_scale, target_weights

if TYPE_CHECKING:
    from torch import Tensor

    from foretune.tasks.loading import LoadedModel
    from foretune.tasks.numerics.factored import Factored, Gradient
    from foretune.tasks.numerics.objectives import Call
    from foretune.tasks.numerics.spaces import Space


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

    def without_autocast(self) -> AdaptedModel:
        """The same in the model's own dtype."""
        loaded = dataclasses.replace(self.loaded, autocast=False)
        return dataclasses.replace(self, loaded=loaded, call=label_caller(loaded, list(self.weights)))

    def moved_by(self, delta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The base weights plus a change of some of them; those that do not change are the base's own."""
        base = self.weights
        return base | {name: base[name] + change.to(base[name]) for name, change in delta.items()}

    @contextlib.contextmanager
    def moved(self, delta: Mapping[str, Gradient]) -> Iterator[dict[str, Tensor]]:
        """Inside the block, what stands in place of the base weights at a change of some of them.

        A change in factors is no weight of its own: its modules add what it makes of their inputs, as peft's do.
        """
        from foretune.tasks.numerics.factored import Factored

        thin = {name: change for name, change in delta.items() if isinstance(change, Factored)}
        if not thin:
            yield self.moved_by(delta)  # pyright: ignore[reportArgumentType]
            return
        handles = []
        try:
            for name, change in thin.items():
                module = self.loaded.model.get_submodule(name.removesuffix(".weight"))
                handles.append(module.register_forward_hook(_adding(change)))
            yield {name: self.weights[name] for name in self.weights}
        finally:
            for handle in handles:
                handle.remove()


def _adding(change: Factored) -> Any:
    left, right = change.factors()

    def added(module: Any, inputs: tuple[Any, ...], output: Any) -> Any:
        x = inputs[0]
        return output + ((x.to(right) @ right.T) @ left.T).to(output)

    return added


def adapt(loaded: LoadedModel, adapter: AdapterSettings, seed: int) -> AdaptedModel:
    """The adapter at its initialisation: for LoRA B = 0 and A as peft draws it under `seed`."""
    weights = target_weights(loaded, adapter.targets)
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    space = space_of(shapes, adapter, seed, loaded.dtype, loaded.device)
    return AdaptedModel(loaded, weights, space, label_caller(loaded, list(weights)))


def space_of(
    shapes: Mapping[str, tuple[int, ...]], adapter: AdapterSettings, seed: int, dtype: Any, device: Any = "cpu"
) -> Space:
    """The adapter's coordinates without a model at hand; `shapes` in the model's order, `dtype` that of the model."""
    from foretune.tasks.numerics.spaces import FullSpace, LoraSpace

    if adapter.method == "full":
        return FullSpace()
    initial = lora_init(shapes, adapter, seed, dtype)
    return LoraSpace({name: a.to(device) for name, a in initial.items()}, lora_scale(adapter))
