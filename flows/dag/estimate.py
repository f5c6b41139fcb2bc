"""What one pass sends through a model, and what it holds."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Bound = Literal["exact", "at most", "about"]
Inputs = Mapping[str, Any]


@dataclass(frozen=True)
class Estimate:
    """Tokens forward and backward, and what is held at once while they go."""

    forward: float = 0
    backward: float = 0
    bound: Bound = "exact"
    models: int = 1  # whose weights are open; 0: the pass opens none
    graph: int = 0  # tokens whose activations are kept for a backward
    read: int = 0  # tokens of the largest micro-batch that only goes forward
    gradients: bool = False  # whether full-weight gradients are summed

    @property
    def equivalents(self) -> float:
        return self.forward + 2 * self.backward


def with_defaults(function: Callable[..., Any], inputs: Inputs) -> dict[str, Any]:
    """All inputs of a task; those that the wiring leaves out do not enter its key."""
    bound = inspect.signature(function).bind(run=None, **inputs)
    bound.apply_defaults()
    return dict(bound.arguments)
