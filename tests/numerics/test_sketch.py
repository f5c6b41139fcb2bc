"""Gradients in factors against dense ones, on matrices small enough to form."""

import pytest
import torch
from torch import nn

from foretune.tasks.numerics.batches import Batch
from foretune.tasks.numerics.control_variate import estimate_mean
from foretune.tasks.numerics.factored import (
    Factored,
    dense,
    difference,
    inner,
    lerp,
    plus,
    thin,
    weighted_sum,
)
from foretune.tasks.numerics.field import VirtualBatches, virtual_batches
from foretune.tasks.numerics.gradients import GradientSum
from foretune.tasks.numerics.objectives import Objective
from foretune.tasks.numerics.optimizers import OptimizerSettings
from foretune.tasks.numerics.products import across, along, between
from foretune.tasks.numerics.ranks import SUM_RANKS
from foretune.tasks.numerics.replay import LoraAdapter, replay
from foretune.tasks.numerics.row_gradients import RowGradients
from foretune.tasks.numerics.sketch import Sketch, SketchSum, lift_of, square
from foretune.tasks.numerics.steadied import steadied
from tests.numerics.fields import field_of
from tests.numerics.test_integrator import whole

OUT, IN, R = 24, 30, 3


def start():
    return torch.randn(R, IN, generator=torch.Generator().manual_seed(5)) / IN**0.5


def steep(seed, decay=2.0, tokens=64):
    """x and d of tokens whose gradient has singular values that fall as a power, as a trained model's do."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, tokens // 2, IN, generator=generator) * torch.arange(1.0, IN + 1) ** -decay
    mix = torch.randn(IN, OUT, generator=generator)
    return x, x @ mix + 0.01 * torch.randn(2, tokens // 2, OUT, generator=generator)


def dense_of(x, d):
    return d.flatten(0, 1).T @ x.flatten(0, 1)


def sketched(*tokens, rank=6):
    sketch = Sketch(start(), OUT, rank)
    for x, d in tokens:
        sketch.add(x, d)
    return sketch


def of_lowrank(gradient, rank=6):
    a = start()
    lift = lift_of(a)
    exact = gradient @ a.T
    u, s, v = torch.linalg.svd(gradient - exact @ lift)
    return Factored(exact, lift, u[:, :rank] * s[:rank], v[:rank])


def test_the_adapters_row_space_is_exact_whatever_the_rank():
    x, d = steep(0)
    kept, error = sketched((x, d), rank=1).stored(torch.float32)
    gradient = dense_of(x, d)
    torch.testing.assert_close(across(kept, start()), gradient @ start().T, rtol=1e-4, atol=1e-4)
    assert kept.rank == 1 and 0 < error.whole < 1


def test_a_gradient_of_low_rank_is_recovered_whole():
    x, d = steep(1)
    x = x[..., :4] @ torch.randn(4, IN, generator=torch.Generator().manual_seed(9))
    kept, error = sketched((x, d)).stored(torch.float32)
    torch.testing.assert_close(kept.dense(), dense_of(x, d), rtol=1e-3, atol=1e-3)
    assert error.whole < 1e-4 and error.along < 1e-4


def test_micro_batches_add_up():
    parts = [steep(2), steep(3)]
    whole = tuple(torch.cat([part[side] for part in parts]) for side in (0, 1))
    for name, summed in sketched(*parts).sums.items():
        torch.testing.assert_close(summed, sketched(whole).sums[name], rtol=1e-4, atol=1e-4)


def test_the_error_told_is_the_error_made():
    """On the mean over test vectors; the best of that rank is not missed by far."""
    x, d = steep(4, decay=1.0)
    gradient, told, made = dense_of(x, d), [], []
    for seed in range(12):
        sketch = Sketch(start(), OUT, 5, seed)
        sketch.add(x, d)
        kept, error = sketch.stored(torch.float32)
        told.append(error.whole)
        made.append(float((gradient - kept.dense()).norm() / gradient.norm()))
    best = float((gradient - of_lowrank(gradient, 5).dense()).norm() / gradient.norm())
    assert sum(told) / 12 == pytest.approx(sum(made) / 12, rel=0.25)
    assert best <= min(made) and sum(made) / 12 < 1.5 * best


@pytest.mark.parametrize("tokens", [4, 200])
def test_a_norm_is_that_of_the_gradient_by_either_product(tokens):
    x, d = steep(5, tokens=tokens)
    assert square(x.flatten(0, 1), d.flatten(0, 1)) == pytest.approx(float(dense_of(x, d).norm() ** 2), rel=1e-4)


def test_arithmetic_in_factors_is_that_of_the_dense_ones():
    torch.manual_seed(0)
    lift = lift_of(start())

    def drawn(rank):
        return Factored(torch.randn(OUT, R), lift, torch.randn(OUT, rank), torch.randn(rank, IN))

    g, h, down, up = drawn(4), drawn(5), torch.randn(2, IN), torch.randn(OUT, 2)
    close = torch.testing.assert_close
    close(across(g, down), g.dense() @ down.T)
    close(along(g, up), up.T @ g.dense())
    close(plus(g, h, 0.5).dense(), g.dense() + 0.5 * h.dense())
    close(difference(g, h).dense(), g.dense() - h.dense())
    close(lerp(g, h, 0.3).dense(), torch.lerp(g.dense(), h.dense(), 0.3))
    assert inner(g, h) == pytest.approx(inner(g.dense(), h.dense()), rel=1e-4)
    assert inner(g, h.dense()) == pytest.approx(inner(g.dense(), h.dense()), rel=1e-4)
    assert plus(g, h).exact.shape[1] == R  # exact parts are added, not appended
    other = thin(torch.randn(OUT, 2), torch.randn(2, IN))
    close(plus(other, g).dense(), other.dense() + g.dense())
    close(weighted_sum([g, h, g], 14).dense(), 2 * g.dense() + h.dense(), rtol=1e-3, atol=1e-3)
    u, s, v = torch.linalg.svd(g.left @ g.right)
    close(g.truncated(2).dense(), g.exact @ lift + (u[:, :2] * s[:2]) @ v[:2], rtol=1e-3, atol=1e-3)
    close(plus(g, h.dense()), g.dense() + h.dense())
    close(plus(g.dense(), h), g.dense() + h.dense())
    foreign = Factored(g.exact, torch.randn(R, IN), g.left, g.right)
    close(plus(g, foreign), g.dense() + foreign.dense())


def test_products_of_a_sum_are_those_of_the_matrix_that_is_never_dense():
    torch.manual_seed(4)
    lift = lift_of(start())
    one, two, elsewhere = (
        Factored(torch.randn(OUT, R), its, torch.randn(OUT, rank), torch.randn(rank, IN))
        for its, rank in ((lift, 3), (lift.clone(), 5), (torch.randn(R, IN), 2))
    )
    change = torch.randn(OUT, R)
    whole = 0.75 * one.dense() + 0.25 * two.dense() - 2 * elsewhere.dense() + change @ lift
    summed = between(one, two, 0.25).plus(elsewhere, -2.0).moved(change, lift)
    torch.testing.assert_close(dense(summed), whole)
    down, up = torch.randn(R, IN), torch.randn(OUT, R)
    torch.testing.assert_close(across(summed, down), whole @ down.T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(along(summed, up), up.T @ whole, rtol=1e-4, atol=1e-4)
    assert len(summed.parts) == 4  # each its own factors, and the exact part of another adapter


def fields(blocks=4):
    """The same field, dense and in factors of full rank."""
    sums = [{"w": dense_of(*steep(seed))} for seed in range(blocks)]
    lift = lift_of(start())
    factored = [{"w": of_lowrank(each["w"], OUT)} for each in sums]
    shared = [{"w": Factored(f["w"].exact, lift, f["w"].left, f["w"].right)} for f in factored]
    sizes = [32] * blocks, [4] * blocks
    return field_of(sums, *sizes), field_of(shared, *sizes)


def test_a_run_over_factors_is_that_over_dense_gradients():
    dense, factored = fields()
    adapter = LoraAdapter({"w": start()}, 2.0, {"w": OUT})
    settings, rates = OptimizerSettings("adamw"), [1e-3] * 12
    own = RowGradients(
        {"w": start()}, (32.0,) * 4, lambda rows, _: torch.stack([dense.read(row, "w") @ start().T for row in rows])
    )
    ends = []
    for field in (dense, factored):
        batches = virtual_batches(field, 4, len(rates), seed=1)
        rows = VirtualBatches(field, batches.groups, 4, own, tuple({step % 4: 1 / 32} for step in range(len(rates))))
        ends.append([replay(each.gradient, adapter, settings, rates).delta["w"] for each in (batches, rows)])
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("blocks", [(1,), (0, 2)])
def test_a_mean_measured_elsewhere_takes_its_coefficient_from_what_is_exact(blocks):
    dense, factored = fields()
    there = [{"w": dense_of(*steep(seed + 20))} for seed in blocks]
    in_factors = [
        {"w": Factored(f.exact, factored.read(0, "w").lift, f.left, f.right)}
        for f in (of_lowrank(t["w"], OUT) for t in there)
    ]
    found = estimate_mean(factored, whole(factored, blocks, in_factors))
    seen = field_of([{"w": dense.read(block, "w") @ start().T} for block in range(4)], [32] * 4, [4] * 4)
    one = estimate_mean(seen, whole(seen, blocks, [{"w": each["w"] @ start().T} for each in there]))
    assert found.coefficient == pytest.approx(one.coefficient, abs=1e-4)  # by what is exact alone
    mean = sum(each["w"] for each in there) / (32 * len(blocks))
    mean += found.coefficient * (dense.mean("w") - dense.group_mean(blocks, "w"))
    torch.testing.assert_close(mean, found.mean["w"].dense(), rtol=1e-2, atol=1e-3)


def test_a_steadied_mean_in_factors_is_no_longer_after_many_anchors():
    _, factored = fields()
    mean = {"w": factored.mean("w")}
    for seed in range(8):
        sums = [of_lowrank(dense_of(*steep(seed + part)), OUT) for part in (20, 40)]
        lift = factored.read(0, "w").lift
        measured = whole(factored, (0, 2), [{"w": Factored(f.exact, lift, f.left, f.right)} for f in sums])
        found = steadied(factored, measured, estimate_mean(factored, measured), mean)
        mean = found.mean
    assert 0 < found.gain < 1  # else nothing is between the two
    assert mean["w"].rank <= SUM_RANKS * factored.read(0, "w").rank


class Pair(nn.Module):
    """Two linear layers between an embedding and an output, all frozen."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.embedding, self.first, self.second = nn.Embedding(11, 8), nn.Linear(8, 12), nn.Linear(12, 11)
        self.requires_grad_(False)

    def forward(self, ids):
        return self.second(self.first(self.embedding(ids)).tanh())


@pytest.mark.parametrize("beta", [None, 0.2])
def test_sums_without_a_weights_gradient_are_the_gradients(beta):
    """Losses, norms and every row's gradient too, of rows and of preference pairs."""
    model = Pair()
    ids = torch.randint(0, 11, (2, 3, 7), generator=torch.Generator().manual_seed(1))
    batches = [Batch(each, torch.ones_like(each), each) for each in ids]
    names = {"first.weight": model.first, "second.weight": model.second}
    weights = {name: module.weight for name, module in names.items()}
    starts = {name: torch.randn(2, module.in_features) for name, module in names.items()}

    def call(changed, batch):
        return torch.func.functional_call(model, changed, (batch.input_ids,))

    dense = GradientSum(Objective(beta), weights)
    thinned = SketchSum(Objective(beta), names, starts, {n: w.shape[0] for n, w in weights.items()}, rank=12)
    rejected = batches[1] if beta else None
    one, other = dense.add(call, batches[0], rejected), thinned.add(call, batches[0], rejected)
    assert other.module_norms == pytest.approx(one.module_norms, rel=1e-4)
    assert other.loss == pytest.approx(one.loss)
    assert torch.tensor(other.sample_losses).allclose(torch.tensor(one.sample_losses))
    kept, errors = thinned.stored()
    for name, total in dense.sums.items():
        torch.testing.assert_close(kept[name].dense(), total, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(other.rows[name].sum(0), total @ starts[name].T, rtol=1e-3, atol=1e-4)
        assert errors[name].whole < 1e-3
