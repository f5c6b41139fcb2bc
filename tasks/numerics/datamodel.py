"""The effect of every row on a loss, from many retrainings of the surrogate: a linear datamodel.

The optimiser's recursion is advanced over the stored row gradients for random halves of the rows, each in an order
of its own, and the outcome is regressed on which rows took part (Ilyas et al. 2022, arXiv 2202.00622). Two things
make a thousand replays enough: the first-order effect of each replay's own order is known and taken out before
the regression (a control variate), and the ridge shrinks towards the first-order score instead of towards zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foretune.tasks.numerics.half_runs import HalfRuns
from foretune.tasks.numerics.optimizers import CLIP_EPS, OptimizerSettings, advance, initial_state

RIDGES = tuple(10.0 ** (power / 2) for power in range(-1, 9))
CHUNK = 2**24  # numbers of batch gradients in memory at once: 64 MB
DRAWS = 16  # of coordinates, where not all are replayed: so many parts of the runs have each its own

# [n, d] fp32 gradient of each row's summed loss in the adapter coordinates of one module
Block = Callable[[str], Tensor]


@torch.no_grad()
def replayed_changes(
    block: Block,
    names: Sequence[str],
    tokens: Sequence[float],
    targets: Callable[[str], Tensor],
    runs: HalfRuns,
    optimizer: OptimizerSettings,
    coordinates: float = 1.0,
    seed: int = 0,
) -> Tensor:
    """[k, targets] float64 first-order change of every target after each run over the frozen row gradients.

    `targets(name)` is [targets, d], the targets' gradients in one module's coordinates. The recursion is
    separable over coordinates but for clipping by the global norm, whose norms are formed in a pass of their own;
    so one module of all rows is in memory at a time. Weight decay is left out: it acts on every run alike.

    Of a share of the `coordinates`, drawn anew for every sixteenth of the runs, the sums are scaled to all: what a
    draw gets wrong is noise between runs, which the fit averages and tells.
    """
    generator = torch.Generator().manual_seed(seed)
    shares = runs.shares(tokens)
    if optimizer.max_grad_norm:
        products = _inner_products(block, names, len(tokens), coordinates, generator)
        norms = runs.squared_norms(products, shares, CHUNK).clamp_min(0.0).sqrt()
        shares *= (optimizer.max_grad_norm / (norms + CLIP_EPS)).clamp_max(1.0).float().unsqueeze(-1)
    settings = OptimizerSettings(
        optimizer.name,
        betas=optimizer.betas,
        eps=optimizer.eps,
        momentum=optimizer.momentum,
        nesterov=optimizer.nesterov,
        max_grad_norm=None,
    )
    changes = torch.zeros(runs.runs, targets(names[0]).shape[0], dtype=torch.float64)
    for name in names:
        rows, target = block(name), targets(name)
        for chunk in _chunks(runs, rows.shape[1], coordinates):
            taken = _drawn(rows.shape[1], coordinates, generator)
            batches = runs.batches(chunk, _of(rows, taken), shares)
            change = {"": torch.zeros_like(batches[:, 0])}
            state = initial_state(settings, change)
            for step, rate in enumerate(runs.rates):
                state = advance(settings, state, change, {"": batches[:, step]}, rate)
            moved = (change[""] @ _of(target, taken).T).double()
            changes[chunk] += moved * (rows.shape[1] / change[""].shape[1])
    return changes


def _inner_products(
    block: Block, names: Sequence[str], rows: int, coordinates: float, generator: torch.Generator
) -> Tensor:
    """R R^T [n, n] float64 of all rows: what every step's norm is read from, which is |w R|^2 = w (R R^T) w^T."""
    products = torch.zeros(rows, rows, dtype=torch.float64)
    for each in map(block, names):
        some = _of(each, _drawn(each.shape[1], coordinates, generator))
        products += (some @ some.T).double() * (each.shape[1] / some.shape[1])
    return products


def _drawn(width: int, share: float, generator: torch.Generator) -> Tensor | None:
    """The columns of one draw; None for all of them."""
    count = max(1, round(share * width))
    return None if count == width else torch.randperm(width, generator=generator)[:count].sort().values


def _of(rows: Tensor, columns: Tensor | None) -> Tensor:
    return rows if columns is None else rows.index_select(1, columns.to(rows.device))


def _chunks(runs: HalfRuns, width: int, coordinates: float) -> list[slice]:
    size = max(1, int(CHUNK // (len(runs.rates) * width * coordinates)))
    if coordinates < 1:
        size = min(size, math.ceil(runs.runs / DRAWS))
    return [slice(start, start + size) for start in range(0, runs.runs, size)]


@dataclass(frozen=True)
class FirstOrder:
    """The first-order effects of the rows in the same runs."""

    scores: Tensor  # [n, targets] float64 change of every target when a row takes part
    changes: Tensor  # [k, targets] float64 change of every target after each run


def first_order(derivatives: Tensor, tokens: Sequence[float], runs: HalfRuns, momentum: float) -> FirstOrder:
    """First-order scores and changes, from each row's derivatives [n, targets] along Adam's direction.

    Adam divides by the size of the batch gradients themselves, so a row counts by its summed loss, against the mean
    tokens of a batch and not against those of its own: that explains 0.85 to 0.89 of the replays' variance, a batch's
    own tokens 0.67 to 0.72 (SmolLM2, self-instruct). A batch at step t moves the weights at every step u >= t by
    (1 - m) m^(u - t) / (1 - m^(u + 1)) of rate u: Adam's mean of gradients with its bias corrected (m = beta 1).
    """
    d, rates = derivatives.double(), torch.tensor(runs.rates, dtype=torch.float64)
    step = torch.arange(len(rates), dtype=torch.float64)
    decay = (momentum ** (step - step[:, None]).clamp_min(0)).triu()  # [t, u] m^(u - t) of every later step u
    effect = decay @ (rates * (1 - momentum) / (1 - momentum ** (step + 1)))  # [t]
    size = runs.rows.shape[2] * sum(tokens) / len(tokens)
    shares = runs.effects(effect, len(tokens)) / size  # [k, n]
    inclusion = runs.inclusion(len(tokens))
    return FirstOrder(-d * (shares.sum() / inclusion.sum()), -shares @ d)


@dataclass(frozen=True)
class Datamodel:
    """Change of every target when a row takes part; one column per target."""

    scores: Tensor  # [n, targets] float64
    explained: Tensor  # [targets] share of the outcomes' variance over replays that first order explains
    ridge: Tensor  # [targets] penalty chosen by generalised cross-validation
    errors: Tensor  # [n, targets] float64 standard error of each score


def fit_datamodel(inclusion: Tensor, changes: Tensor, known_order: FirstOrder) -> Datamodel:
    """Scores [n, targets] from k replays: inclusion [k, n] and changes [k, targets].

    scores = slope * first-order scores + ridge regression of (changes - slope * first-order changes) on inclusion.
    Halves of equal size hold no information on what all rows have in common: that part is first order alone.

    The errors are those of the ridge read as a prior (Wahba 1983): s^2 diag((X'X + ridge)^-1) with s^2 the variance
    that is left, so that they hold the replays' noise and what shrinking may have taken. They are of the surrogate:
    that its gradients stay at the base weights is not in them.
    """
    taken, outcome, known = (part - part.mean(0) for part in (inclusion, changes, known_order.changes))
    slope = (known * outcome).sum(0) / known.square().sum(0).clamp_min(1e-300)
    rest = outcome - slope * known
    variance = outcome.square().sum(0).clamp_min(1e-300)
    u, s, vt = torch.linalg.svd(taken, full_matrices=False)
    kept = s > 1e-9 * s[0]
    u, s, vt = u[:, kept], s[kept], vt[kept]
    projected = u.T @ rest  # [rank, targets]
    outside = rest.square().sum(0) - projected.square().sum(0)
    errors = torch.stack([_cross_validated(s, projected, outside, len(taken), ridge) for ridge in RIDGES])
    chosen = torch.tensor(RIDGES, dtype=torch.float64)[errors.argmin(0)]
    correction = vt.T @ (projected * s[:, None] / (s.square()[:, None] + chosen))
    left = chosen / (s.square()[:, None] + chosen)  # [rank, targets]
    free = (len(taken) - 1 - (1 - left).sum(0)).clamp_min(1e-9)
    noise = ((left * projected).square().sum(0) + outside.clamp_min(0.0)) / free
    directions = vt.T.square()  # [n, rank]
    unseen = (1 - directions.sum(1, keepdim=True)).clamp_min(0.0) / chosen
    errors_of_rows = (noise * (directions @ (1 / (s.square()[:, None] + chosen)) + unseen)).sqrt()
    explained = 1 - rest.square().sum(0) / variance
    return Datamodel(slope * known_order.scores + correction, explained, chosen, errors_of_rows)


def _cross_validated(s: Tensor, projected: Tensor, outside: Tensor, runs: int, ridge: float) -> Tensor:
    """Generalised cross-validation error (Golub, Heath & Wahba 1979) of one penalty, per target."""
    left = ridge / (s.square() + ridge)  # share of each direction that is not fitted; one mean is fitted besides
    free = (runs - 1 - (1 - left).sum()).clamp_min(1e-9)
    return ((left[:, None] * projected).square().sum(0) + outside) / free**2
