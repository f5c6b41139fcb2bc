"""Inputs and output gradients of linear modules: every sample's gradient, in factors, without forming it.

The gradient of sample i in a weight [out, in] is sum_t delta_t x_t^T over its tokens, so its inner product
with a direction U is sum_t delta_t . (U x_t): two small products a token instead of a model pass per
direction.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

import torch
from torch import Tensor, nn

from foretune.tasks.numerics.vectors import Vector


class Taps:
    """Context manager that records the input [b, s, in] and output [b, s, out] of modules in a forward pass.

    `modules` maps a weight's name to the module that multiplies by it, which must run once per forward pass.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = modules
        self._inputs: dict[str, Tensor] = {}
        self._outputs: dict[str, Tensor] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Taps:
        self._handles = [m.register_forward_hook(self._recorder(name)) for name, m in self._modules.items()]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._inputs, self._outputs = {}, {}

    def _recorder(self, name: str):
        def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            self._inputs[name] = inputs[0].detach()
            # Frozen weights leave the first outputs outside the graph: they become its leaves.
            self._outputs[name] = output if output.requires_grad else output.requires_grad_()
            return self._outputs[name]

        return record

    def output_gradients(self, loss: Tensor, retain_graph: bool = False) -> Vector:
        """{name: [b, s, out]}: gradient of the scalar `loss`; no weight gradient is computed.

        Raises ValueError for modules that the forward pass did not run.
        """
        missing = self._modules.keys() - self._outputs.keys()
        if missing:
            raise ValueError(f"{len(missing)} of {len(self._modules)} modules did not run: {min(missing)}")
        gradients = torch.autograd.grad(loss, list(self._outputs.values()), retain_graph=retain_graph)
        return dict(zip(self._outputs, gradients, strict=True))

    def inner(self, factors: Mapping[str, Tensor]) -> Vector:
        """{name: [b, s, r]}: the inputs through the factors A [r, in], at least in single precision."""
        return {
            name: nn.functional.linear(x, factors[name].to(x)).to(torch.promote_types(x.dtype, torch.float32))
            for name, x in self._inputs.items()
        }

    def dots(self, output_gradients: Vector, direction: Vector) -> Vector:
        """{name: [b]} gradient of each sample's share of the loss along `direction`, module by module."""
        return {name: self._dot(name, output_gradients[name], u) for name, u in direction.items()}

    def _dot(self, name: str, delta: Tensor, u: Tensor) -> Tensor:
        moved = nn.functional.linear(self._inputs[name], u.to(self._inputs[name].dtype))  # [b, s, out]
        return (moved * delta).flatten(1).sum(-1, dtype=torch.promote_types(u.dtype, torch.float32))
