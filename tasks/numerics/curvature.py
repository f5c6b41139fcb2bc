"""The one Hessian-vector product: Gauss-Newton or exact, on adapter coordinates, at the base weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from foretune.tasks.numerics.batches import Batch
from foretune.tasks.numerics.graphs import CurvatureGraph, GaussNewtonGraph, HessianGraph
from foretune.tasks.numerics.objectives import Call
from foretune.tasks.numerics.spaces import Space, coordinate_dtype
from foretune.tasks.numerics.vectors import Vector


class CurvatureOperator:
    """theta -> H theta, H the curvature of the token-mean loss (nats per token) over fixed micro-batches.

    Exactly weighted: sums over label tokens, divided once by `tokens`, so any split into micro-batches gives
    the same operator. Linear and symmetric; Gauss-Newton is positive semi-definite, the exact Hessian need
    not be.
    """

    def __init__(
        self,
        build: Callable[[Batch], CurvatureGraph],
        space: Space,
        weights: Vector,
        batches: Sequence[Batch],
        graph_tokens: int,
    ) -> None:
        self._build, self._space, self._weights = build, space, weights
        self._batches = [batch for batch in batches if batch.label_tokens]
        self._graph_tokens = graph_tokens
        self._kept: dict[int, CurvatureGraph] = {}
        self.tokens = sum(batch.label_tokens for batch in self._batches)
        self.products = 0  # products with the whole operator so far
        if not self.tokens:
            raise ValueError(f"{len(batches)} curvature batches hold 0 label tokens: give rows that train")

    def zeros(self) -> Vector:
        """The origin of theta, as a template of names, shapes and dtypes."""
        return self._space.zeros(self._weights)

    def matvec(self, theta: Vector) -> Vector:
        """H theta; one product over all micro-batches."""
        tangent = self._space.lift(theta)
        total = {n: torch.zeros_like(w, dtype=coordinate_dtype(w.dtype)) for n, w in self._weights.items()}
        for graph in self._graphs():
            for name, part in graph.product(tangent).items():
                total[name] += part
            del graph  # or it lasts until the next one is built
        self.products += 1
        return {name: t / self.tokens for name, t in self._space.pull(total).items()}

    def blocks(self, theta: Vector) -> dict[str, float]:
        """theta_i^T H_ii theta_i for every module i: one J v each, no product with the transpose."""
        tangent = self._space.lift(theta)
        sums = dict.fromkeys(tangent, 0.0)
        for graph in self._graphs():
            for name, t in tangent.items():
                sums[name] += graph.block({name: t})
            del graph
        return {name: total / self.tokens for name, total in sums.items()}

    def _graphs(self) -> Iterator[CurvatureGraph]:
        budget = self._graph_tokens
        for position, batch in enumerate(self._batches):
            budget -= batch.padded_tokens
            if position in self._kept:
                yield self._kept[position]
            elif budget >= 0:
                yield self._kept.setdefault(position, self._build(batch))
            else:
                yield self._build(batch)


def gauss_newton(
    call: Call, weights: Vector, space: Space, batches: Sequence[Batch], graph_tokens: int = 0
) -> CurvatureOperator:
    """J^T H_L J: J the Jacobian of the logits in theta, H_L the Hessian of cross entropy (Schraudolph 2002).

    Needs kernels with a second derivative (eager and sdpa attention). Graphs are kept between products for the first
    micro-batches, up to `graph_tokens` padded tokens; a token of a 135M-parameter Llama takes 3 MB. Raises ValueError
    when no batch has a label.
    """
    return CurvatureOperator(lambda b: GaussNewtonGraph(call, weights, b), space, weights, batches, graph_tokens)


def hessian(
    call: Call, weights: Vector, space: Space, batches: Sequence[Batch], graph_tokens: int = 0
) -> CurvatureOperator:
    """The exact Hessian of the token-mean loss in theta, by double backward (Pearlmutter 1994).

    Symmetric but indefinite away from a minimum. Arguments and errors as in `gauss_newton`.
    """
    return CurvatureOperator(lambda b: HessianGraph(call, weights, b), space, weights, batches, graph_tokens)
