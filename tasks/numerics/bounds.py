"""The last gate before a delta touches the weights: finite, and no tensor moves further than allowed."""

from __future__ import annotations

from dataclasses import dataclass

from foretune.tasks.numerics.vectors import Vector


@dataclass(frozen=True)
class BoundedDelta:
    delta: Vector  # {name: [out, in]}
    norms: dict[str, float]  # after clipping
    clipped: tuple[str, ...]  # tensors that were scaled down
    shares: dict[str, float]  # what is left of each tensor's delta: 1, or less where it was scaled down


def bounded(delta: Vector, weights: Vector, max_relative_change: float) -> BoundedDelta:
    """Scale every tensor's delta to at most `max_relative_change` of its weight's Frobenius norm.

    A weight of zeros (a new bias) has no norm to measure by: its delta is only checked to be finite.
    Raises ValueError naming the first tensor that is not finite.
    """
    kept, norms, clipped, shares = {}, {}, [], {}
    for name, change in delta.items():
        norm, size = float(change.double().norm()), float(weights[name].double().norm())
        if not norm < float("inf"):
            raise ValueError(f"the predicted delta of {name} is not finite: lower learning_rate or epochs")
        factor = min(1.0, max_relative_change * size / norm) if norm and size else 1.0
        if factor < 1.0:
            clipped.append(name)
        kept[name], norms[name], shares[name] = change * factor, norm * factor, factor
    return BoundedDelta(kept, norms, tuple(clipped), shares)
