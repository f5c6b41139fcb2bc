"""The closed form: how far each tensor may move, from its own curvature in the gradient's direction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from foretune.tasks.numerics.replay import Factors
from foretune.tasks.numerics.vectors import Vector


def effective_rates(
    quotients: Mapping[str, float], learning_rate: float, steps: int, damping: float
) -> dict[str, float]:
    """eta_eff_i = eta T / (K_ii + lambda): flat tensors move far, sharp ones carefully.

    Raises ValueError where K_ii + lambda is not positive: the closed form has no minimum to move to there.
    """
    rates = {}
    for name, quotient in quotients.items():
        if quotient + damping <= 0:
            raise ValueError(
                f"K_ii + lambda = {quotient:.3g} + {damping:.3g} <= 0 for {name}: raise rayleigh_lambda, "
                "or use curvature: gauss_newton"
            )
        rates[name] = learning_rate * steps / (quotient + damping)
    return rates


def closed_form_step(gradient: Vector, rates: Mapping[str, float]) -> Vector:
    """theta_i = -eta_eff_i g_i, in adapter coordinates."""
    return {name: -rates[name] * g for name, g in gradient.items()}


@dataclass(frozen=True)
class StraightPath:
    """The closed form has no order of steps: its path is the straight line to its end."""

    final: Vector  # {name: [out, in]}
    steps: int
    end: Factors = field(default_factory=dict)  # LoRA's factors there: A as it starts, and B

    def delta_at(self, step: int) -> Vector:
        return {name: change * (step / self.steps) for name, change in self.final.items()}

    def factors_at(self, step: int) -> Factors:
        return {name: (a, b * (step / self.steps)) for name, (a, b) in self.end.items()}
