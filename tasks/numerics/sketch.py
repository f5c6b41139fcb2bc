"""Gradient sums measured in factors, without forming them: a two-sided sketch of every weight's gradient.

With x_t the input of a linear module and d_t the gradient of its output at token t, G = sum_t d_t x_t^T. Three thin
products are summed instead: G A0^T, exact for the first step of a LoRA adapter that starts at A0; Y = R W and Z = S G,
of the rest R = G (I - P) outside A0's row space, with seeded normal W and S. At the end R ~ Y (S Y)^+ S R, the
generalised Nystrom approximation (Tropp, Yurtsever, Udell & Cevher, Practical sketching algorithms for low-rank matrix
approximation, 2017), cut to the stored rank by its singular values. All three are linear in G, so that micro-batches
add up. G times a few vectors of signs is summed too, and tells the error of what is stored.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import TracebackType

import torch
from torch import Tensor, nn

from foretune.tasks.numerics.batches import Batch
from foretune.tasks.numerics.factored import Factored
from foretune.tasks.numerics.gradients import BatchGradient, batch_gradient
from foretune.tasks.numerics.objectives import Call, Objective
from foretune.tasks.numerics.ranks import LEFT, PROBES, RIGHT


@dataclass(frozen=True)
class SketchError:
    """How far a stored gradient is from the measured one, as shares of the latter's norm, estimated."""

    whole: float  # |G - stored| / |G|
    along: float  # |B^T (G - stored)| / |B^T G| with B the sign of G A0^T, where Adam's first step takes it


@dataclass
class Sketch:
    """The sums of one weight [out, in]."""

    start: Tensor  # A0 [r, in]
    outputs: int
    rank: int  # that is stored beside the exact part
    seed: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def lift(self) -> Tensor:
        """(A0^T)^+ [r, in]: (G A0^T) lift is G projected on A0's row space."""
        return lift_of(self.start)

    @cached_property
    def tests(self) -> tuple[Tensor, Tensor, Tensor]:
        """W [in, k] outside A0's row space, S [q, out], and the vectors of signs [in, PROBES]."""
        generator, inputs = torch.Generator().manual_seed(self.seed), self.start.shape[1]
        left = min(LEFT * self.rank, self.outputs)
        right = min(RIGHT * self.rank, inputs, left)
        w = torch.randn(inputs, right, generator=generator)
        s = torch.randn(left, self.outputs, generator=generator)
        if left == self.outputs:  # all of the left side: no approximation there
            s = torch.eye(left)
        signs = torch.randint(0, 2, (inputs, PROBES), generator=generator).float().mul_(2).sub_(1)
        w, s, signs = (test.to(self.start.device) for test in (w, s, signs))
        return w - self.start.T @ (self.lift @ w), s, signs

    def add(self, inputs: Tensor, output_gradients: Tensor) -> Tensor:
        """Add x [b, s, in] and d [b, s, out]; gives each row's G_i A0^T [b, out, r]."""
        inputs, output_gradients = (side.to(self.start.device) for side in (inputs, output_gradients))
        inner = inputs.float() @ self.start.T
        rows = torch.einsum("bso,bsr->bor", output_gradients.float(), inner)
        x, d = inputs.flatten(0, -2).float(), output_gradients.flatten(0, -2).float()
        w, s, signs = self.tests
        parts = {"exact": rows.sum(0), "right": d.T @ (x @ w), "left": (d @ s.T).T @ x, "probes": d.T @ (x @ signs)}
        for name, part in parts.items():
            self.sums[name] = self.sums[name].add_(part) if name in self.sums else part
        return rows

    def stored(self, dtype: torch.dtype) -> tuple[Factored, SketchError]:
        """The gradient in factors that were rounded to `dtype`, and how far it is from what was measured."""
        if not self.sums:
            width = self.start.shape[1]
            empty = [self.start.new_zeros(size) for size in ((self.outputs, len(self.start)), (self.outputs, 0))]
            return Factored(empty[0], self.lift, empty[1], self.start.new_zeros(0, width)), SketchError(0.0, 0.0)
        _, s, signs = self.tests
        exact = self.sums["exact"]
        beside = self.sums["left"] - (s @ exact) @ self.lift  # S R
        basis, _ = torch.linalg.qr(self.sums["right"])
        weights = torch.linalg.pinv((s @ basis).double()) @ beside.double()
        u, values, v = torch.linalg.svd(weights, full_matrices=False)
        u, values, v = (part.float() for part in (u[:, : self.rank], values[: self.rank].sqrt(), v[: self.rank]))
        rounded = [part.to(dtype).float() for part in (exact, basis @ (u * values), values[:, None] * v)]
        kept = Factored(rounded[0], self.lift, rounded[1], rounded[2])
        missed, step = self.sums["probes"] - kept @ signs, exact.sign()
        probed = self.sums["probes"]
        return kept, SketchError(_ratio(missed, probed), _ratio(step.T @ missed, step.T @ probed))


def lift_of(start: Tensor) -> Tensor:
    """(A0^T)^+ [r, in] of A0 [r, in]; the rank may exceed the input width."""
    return torch.linalg.pinv(start.T)


def square(x: Tensor, d: Tensor) -> float:
    """|d^T x|^2 of x [t, in] and d [t, out], through whichever product is smaller."""
    tokens, inputs, outputs = len(x), x.shape[1], d.shape[1]
    if tokens * (inputs + outputs) < inputs * outputs:
        return float(((x @ x.T) * (d @ d.T)).sum(dtype=torch.float64).clamp_min(0))
    return float(torch.linalg.vector_norm(d.T @ x, dtype=torch.float64) ** 2)


def seed_of(name: str, seed: int) -> int:
    """Of a weight's test vectors: the same in every block of a field."""
    return (zlib.crc32(name.encode()) << 16) ^ seed


class SketchTaps:
    """Context manager that adds what goes through linear modules to their sketches, on the way back of a loss.

    An input is kept from the forward until the backward has passed its module, as a trainer of LoRA keeps it.
    """

    def __init__(self, modules: Mapping[str, nn.Module], sketches: Mapping[str, Sketch]) -> None:
        self._modules, self._sketches = modules, sketches
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._leaves: list[Tensor] = []
        self._rows: dict[str, Tensor] = {}
        self._squares: dict[str, float] = {}
        self._other: dict[str, tuple[Tensor, Tensor]] = {}  # x and d of a pair's one side, until the other has passed
        self.by_row = True  # whether rows and norms are wanted, or sums alone
        self.paired = False  # whether the rows of both sides are one sample: a preference pair runs every module twice

    def __enter__(self) -> SketchTaps:
        self._handles = [m.register_forward_hook(self._recorder(name)) for name, m in self._modules.items()]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._leaves = []

    def _recorder(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if not torch.is_grad_enabled():
                return
            x = inputs[0].detach()
            if not output.requires_grad:  # above frozen weights alone the output is outside every graph
                output.requires_grad_()
                self._leaves.append(output)
            output.register_hook(lambda gradient: self._add(name, x, gradient))

        return record

    @torch.no_grad()
    def _add(self, name: str, x: Tensor, gradient: Tensor) -> None:
        rows = self._sketches[name].add(x, gradient)
        if not self.by_row:
            return
        self._rows[name] = self._rows[name] + rows if name in self._rows else rows
        x, gradient = x.flatten(0, -2).float(), gradient.flatten(0, -2).float()
        if self.paired and name not in self._other:
            self._other[name] = x, gradient
            return
        if self.paired:
            other = self._other.pop(name)
            x, gradient = torch.cat([x, other[0]]), torch.cat([gradient, other[1]])
        self._squares[name] = self._squares.get(name, 0.0) + square(x, gradient)

    def leaves(self) -> list[Tensor]:
        """What a loss is to be differentiated in, so that all hooks are passed; forgets them."""
        leaves, self._leaves = self._leaves, []
        return leaves

    def taken(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Each row's G_i A0^T and the squared norms by module, since the last call."""
        rows, squares, self._rows, self._squares = self._rows, self._squares, {}, {}
        return rows, squares


class SketchSum:
    """`gradients.GradientSum` in factors: no weight's gradient is formed for longer than its own turn."""

    def __init__(
        self,
        objective: Objective,
        modules: Mapping[str, nn.Module],
        starts: Mapping[str, Tensor],
        outputs: Mapping[str, int],
        rank: int,
        seed: int = 0,
    ) -> None:
        self.objective = objective
        self.leaves: dict[str, Tensor] = {}  # no weight is differentiated in
        self.sketches = {
            name: Sketch(starts[name].float(), outputs[name], rank, seed_of(name, seed)) for name in modules
        }
        self.taps = SketchTaps(modules, self.sketches)
        self.residual_sum: Tensor | None = None
        self.tokens = 0.0
        self.loss_sum = 0.0

    def add(
        self,
        call: Call,
        batch: Batch,
        rejected: Batch | None = None,
        residuals: Callable[[], Sequence[Tensor]] = tuple,
        reference: tuple[Tensor, Tensor] | None = None,
    ) -> BatchGradient:
        """As `GradientSum.add`, each row's gradient in A0's coordinates with it."""
        residuals()
        self.taps.paired = self.objective.dpo_beta is not None and rejected is not None
        with self.taps:
            losses = self.objective.losses(call, self.leaves, batch, rejected, reference)
            captured = list(residuals())
            loss_sum, tokens = losses.loss_sum.sum(), float(losses.tokens.sum())
            gradients = torch.autograd.grad(loss_sum, [*captured, *self.taps.leaves()])
        for gradient in gradients[: len(captured)]:
            summed = gradient.float().sum(dim=(0, 1))
            self.residual_sum = summed if self.residual_sum is None else self.residual_sum + summed
        rows, found = self.taps.taken()
        squares = [found.get(name, 0.0) / tokens**2 for name in self.sketches]
        self.tokens += tokens
        self.loss_sum += float(loss_sum.detach())
        return batch_gradient(losses, squares, rows)

    def add_value(self, value: Callable[[dict[str, Tensor]], Tensor]) -> None:
        """Add the gradient of a scalar function of the weights, which may call the model several times."""
        self.taps.by_row = False
        with self.taps:
            total, leaves = value(self.leaves), self.taps.leaves()
            if leaves and total.requires_grad:
                torch.autograd.grad(total, leaves, allow_unused=True)

    @property
    def sums(self) -> dict[str, Factored]:
        """Every weight's sum over all samples."""
        return self.stored()[0]

    def stored(self, dtype: torch.dtype = torch.float32) -> tuple[dict[str, Factored], dict[str, SketchError]]:
        """Every weight's sum over all samples, and its error."""
        made = {name: sketch.stored(dtype) for name, sketch in self.sketches.items()}
        return {name: kept for name, (kept, _) in made.items()}, {name: error for name, (_, error) in made.items()}


def _ratio(missed: Tensor, whole: Tensor) -> float:
    size = float(whole.double().norm())
    return float(missed.double().norm()) / size if size else 0.0
