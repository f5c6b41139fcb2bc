import math
from itertools import pairwise

import pytest
import torch

from foretune.tasks.numerics.control_variate import Measured, estimate_mean
from foretune.tasks.numerics.field import virtual_batches
from foretune.tasks.numerics.integrator import (
    Anchor,
    AnchorPlan,
    equal_segments,
    integrate,
    plan_anchors,
    rotation,
    trusted_share,
)
from foretune.tasks.numerics.optimizers import OptimizerSettings
from foretune.tasks.numerics.replay import FullAdapter, LoraAdapter, replay
from foretune.tasks.numerics.schedules import learning_rates
from foretune.tasks.numerics.steadied import steadied
from tests.numerics.fields import field_of

OUT, IN, RANK, SCALE, BLOCKS, TOKENS, STEPS = 5, 6, 2, 2.0, 6, 10, 40
ADAMW = OptimizerSettings("adamw", max_grad_norm=None)
SGD = OptimizerSettings("sgd", momentum=0.5, max_grad_norm=None)


class Quadratic:
    """Token-mean loss 1/2 <W - goal, H (W - goal)> at W0 = 0, plus a slope per block; slopes sum to zero."""

    def __init__(self, noise=0.3):
        generator = torch.Generator().manual_seed(4)
        root = torch.randn(OUT, OUT, generator=generator)
        self.hessian = 0.3 * (root @ root.T / OUT + 0.1 * torch.eye(OUT))
        self.goal = 0.5 * torch.randn(OUT, IN, generator=generator)
        slopes = noise * torch.randn(BLOCKS, OUT, IN, generator=generator)
        self.slopes = slopes - slopes.mean(0)
        self.measured = 0

    def block_sums(self, delta, blocks):
        self.measured += len(blocks)
        mean = self.hessian @ (delta["w"] - self.goal)
        return [{"w": TOKENS * (mean + self.slopes[block])} for block in blocks]

    def field(self):
        sums = self.block_sums({"w": torch.zeros(OUT, IN)}, range(BLOCKS))
        self.measured = 0
        return field_of(sums, [TOKENS] * BLOCKS, [4] * BLOCKS)


class LoraWeight(torch.nn.Module):
    def __init__(self, initial_a):
        super().__init__()
        self.a = torch.nn.Parameter(initial_a.clone())
        self.b = torch.nn.Parameter(torch.zeros(OUT, RANK))

    def forward(self):
        return SCALE * self.b @ self.a


class FullWeight(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(OUT, IN))

    def forward(self):
        return self.w


def train(problem, batches, module, settings, rates):
    """torch's optimiser on the real quadratic, meeting the same batch noise at every step."""
    if settings.name == "adamw":
        optimizer = torch.optim.AdamW(module.parameters(), lr=1.0, weight_decay=0.0)
    else:
        optimizer = torch.optim.SGD(module.parameters(), lr=1.0, momentum=settings.momentum)
    for step, rate in enumerate(rates):
        noise = batches.gradient(step, "w") - batches.field.mean("w")
        error = module() - problem.goal
        optimizer.zero_grad()
        (0.5 * (error * (problem.hessian @ error)).sum() + (noise * module()).sum()).backward()
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    return module().detach()


def trainable(kind):
    initial_a = torch.randn(RANK, IN, generator=torch.Generator().manual_seed(9)) / IN**0.5
    if kind == "lora":
        return LoraWeight(initial_a), LoraAdapter({"w": initial_a}, SCALE, {"w": OUT})
    return FullWeight(), FullAdapter({"w": torch.zeros(OUT, IN)})


def whole(field, blocks, sums):
    """All rows of some blocks, measured."""
    return [Measured.whole(field, block, each) for block, each in zip(blocks, sums, strict=True)]


def integrated(problem, batches, adapter, settings, rates, plan, snapshots=(), seed=0):
    """The integration, every anchor of which is measured on the quadratic."""
    run = integrate(batches, adapter, settings, rates, plan, seed=seed, snapshots=snapshots)
    reached = next(run)
    while isinstance(reached, Anchor):
        blocks = [portion.block for portion in reached.portions]
        measured = whole(batches.field, blocks, problem.block_sums(reached.delta, blocks))
        estimate = estimate_mean(batches.field, measured)
        if plan.steady:
            estimate = steadied(batches.field, measured, estimate, reached.mean)
        reached = run.send(estimate)
    return reached


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("settings, rate", [(ADAMW, 0.03), (SGD, 0.02)], ids=["adamw", "sgd"])
def test_more_anchors_converge_to_the_real_run(kind, settings, rate):
    problem = Quadratic()
    batches = virtual_batches(problem.field(), 4, STEPS, seed=0)
    rates = learning_rates("linear", rate, STEPS)
    module, adapter = trainable(kind)
    truth = train(problem, batches, module, settings, rates)

    def error(segments):
        plan = AnchorPlan(tuple(equal_segments(rates, segments)), BLOCKS)
        integration = integrated(problem, batches, adapter, settings, rates, plan)
        return float((integration.replay.delta["w"] - truth).norm() / truth.norm())

    frozen = replay(batches.gradient, adapter, settings, rates).delta["w"]
    errors = [float((frozen - truth).norm() / truth.norm()), error(2), error(8), error(STEPS)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.1
    assert errors[2] < 0.02
    assert errors[3] < 2e-3


def test_a_linear_loss_needs_no_anchors():
    problem = Quadratic()
    problem.hessian = torch.zeros(OUT, OUT)
    batches = virtual_batches(problem.field(), 4, STEPS, seed=0)
    rates = learning_rates("cosine", 0.03, STEPS)
    _, adapter = trainable("lora")
    integration = integrated(problem, batches, adapter, ADAMW, rates, AnchorPlan((13, STEPS), 2))
    torch.testing.assert_close(integration.replay.delta, replay(batches.gradient, adapter, ADAMW, rates).delta)
    assert all(anchor.correction < 1e-5 for anchor in integration.anchors)
    assert all(anchor.coefficient == pytest.approx(1.0, abs=1e-5) for anchor in integration.anchors)


def test_the_control_variate_removes_noise_that_blocks_keep():
    problem = Quadratic(noise=5.0)
    field, delta = problem.field(), {"w": torch.ones(OUT, IN)}
    exact = problem.hessian @ (delta["w"] - problem.goal)
    plain = problem.block_sums(delta, [0, 3])
    estimate = estimate_mean(field, whole(field, [0, 3], plain))
    assert estimate.coefficient == pytest.approx(1.0, abs=1e-4)
    torch.testing.assert_close(estimate.mean["w"], exact, rtol=1e-4, atol=1e-4)
    assert float(((plain[0]["w"] + plain[1]["w"]) / (2 * TOKENS) - exact).norm()) > 1.0


def test_one_block_gives_the_coefficient_by_its_part_orthogonal_to_the_mean():
    problem = Quadratic(noise=5.0)
    field, left = problem.field(), 0.6
    deviation = field.group_mean([2], "w") - field.mean("w")
    mean = 0.5 * field.mean("w")
    estimate = estimate_mean(field, whole(field, [2], [{"w": TOKENS * (mean + left * deviation)}]))
    assert estimate.coefficient == pytest.approx(left, abs=1e-5)
    torch.testing.assert_close(estimate.mean["w"], mean, rtol=1e-4, atol=1e-4)


def test_the_control_variate_leaves_out_noise_that_blocks_lost():
    problem = Quadratic(noise=5.0)
    field = problem.field()
    mean = torch.full((OUT, IN), 0.7)
    estimate = estimate_mean(field, whole(field, [1, 2], [{"w": TOKENS * mean}] * 2))
    assert estimate.coefficient == 0.0
    torch.testing.assert_close(estimate.mean["w"], mean)


def test_cost_and_snapshots_are_reported():
    problem = Quadratic()
    batches = virtual_batches(problem.field(), 4, STEPS, seed=0)
    rates = learning_rates("linear", 0.03, STEPS)
    _, adapter = trainable("lora")
    plan = AnchorPlan((10, 25, STEPS), 2)
    integration = integrated(problem, batches, adapter, ADAMW, rates, plan, snapshots=(0, 10, 17, STEPS))
    assert problem.measured == 6
    assert integration.measured_rows == 24
    assert [anchor.step for anchor in integration.anchors] == [10, 25, STEPS]
    assert float(integration.replay.delta_at(0)["w"].norm()) == 0.0
    assert torch.equal(integration.replay.delta_at(STEPS)["w"], integration.replay.delta["w"])
    assert float(integration.replay.delta_at(17)["w"].norm()) > 0


def test_the_path_integral_gives_the_loss_that_was_reached():
    problem = Quadratic()
    batches = virtual_batches(problem.field(), 4, STEPS, seed=0)
    rates = learning_rates("linear", 0.03, STEPS)
    _, adapter = trainable("full")
    plan = AnchorPlan(tuple(equal_segments(rates, 6)), BLOCKS)
    integration = integrated(problem, batches, adapter, ADAMW, rates, plan)

    def loss(delta):
        error = delta - problem.goal
        return float(0.5 * (error * (problem.hessian @ error)).sum())

    reached = loss(integration.replay.delta["w"]) - loss(torch.zeros(OUT, IN))
    assert reached < -0.05
    assert integration.anchors[-1].loss_change == pytest.approx(reached, rel=0.02)


def test_the_plan_covers_the_run_with_segments_as_long_as_the_trusted_share():
    field = Quadratic().field()  # 6 blocks of 4 rows
    rates = [1e-3] * 40
    assert plan_anchors(field, rates, 0.25, 8, 96) == AnchorPlan((10, 20, 30, 40), 4)
    assert plan_anchors(field, rates, 0.25, 8, 40) == AnchorPlan((10, 20, 30, 40), 2)
    assert plan_anchors(field, rates, 0.25, 3, 24) == AnchorPlan((13, 27, 40), 2)
    assert plan_anchors(field, rates, 0.0, 5, 1000) == AnchorPlan((8, 16, 24, 32, 40), 4)


def test_a_base_that_is_trusted_for_long_is_measured_again_three_times_where_the_rows_are_paid_for():
    field, rates = Quadratic().field(), [1e-3] * 24
    assert plan_anchors(field, rates, 0.9, 8, 40) == AnchorPlan((8, 16, 24), 3)
    assert plan_anchors(field, rates, 0.9, 2, 40) == AnchorPlan((12, 24), 4)  # max_anchors
    assert plan_anchors(field, rates, 0.9, 8, 16) == AnchorPlan((8, 16, 24), 1)
    assert plan_anchors(field, rates, 0.9, 8, 8) == AnchorPlan((12, 24), 1)


def test_to_the_last_no_block_that_is_paid_for_is_left_over():
    field, rates = Quadratic().field(), [1e-3] * 40  # 6 blocks of 4 rows
    assert plan_anchors(field, rates, 0.0, 8, 60) == AnchorPlan((5, 10, 15, 20, 25, 30, 35, 40), 1)  # 15 are paid for
    assert plan_anchors(field, rates, 0.0, 8, 60, to_the_last=True) == AnchorPlan((8, 16, 24, 32, 40), 3, True)
    assert plan_anchors(field, rates, 0.0, 8, 28, to_the_last=True) == AnchorPlan((6, 11, 17, 23, 29, 34, 40), 1, True)
    assert plan_anchors(field, rates, 0.0, 8, 3, to_the_last=True) == AnchorPlan((), 0)


def test_on_a_budget_segments_are_short_as_long_as_there_are_two_blocks_for_each():
    field, rates = Quadratic().field(), [1e-3] * 56  # trusted for half of it: three segments would do
    assert plan_anchors(field, rates, 0.5, 8, 48, to_the_last=True) == AnchorPlan((14, 28, 42, 56), 3, True)
    assert plan_anchors(field, rates, 0.5, 8, 16, to_the_last=True) == AnchorPlan((28, 56), 2, True)
    assert plan_anchors(field, rates, 0.5, 3, 48, to_the_last=True) == AnchorPlan((19, 37, 56), 4, True)


def test_short_of_rows_a_second_block_goes_before_segments_shorter_than_twice_the_trusted_share():
    field, rates = Quadratic().field(), [1e-3] * 24
    assert plan_anchors(field, rates, 1 / 4, 8, 16) == AnchorPlan((8, 16, 24), 1)
    assert plan_anchors(field, rates, 1 / 6, 6, 24) == AnchorPlan((8, 16, 24), 2)
    assert plan_anchors(field, rates, 1 / 8, 8, 16) == AnchorPlan((6, 12, 18, 24), 1)
    assert plan_anchors(field, rates, 0.0, 8, 16) == AnchorPlan((6, 12, 18, 24), 1)
    assert plan_anchors(field, rates, 1 / 4, 8, 4) == AnchorPlan((24,), 1)
    assert plan_anchors(field, rates, 1 / 4, 8, 3) == AnchorPlan((), 0)


def test_a_long_run_gets_short_segments_before_a_second_block():
    field, rates = Quadratic().field(), [1e-3] * 56
    assert plan_anchors(field, rates, 0.25, 16, 16) == AnchorPlan((14, 28, 42, 56), 1)
    assert plan_anchors(field, rates, 0.25, 16, 8) == AnchorPlan((28, 56), 1)  # there must be a block for each


def test_the_trusted_share_ends_where_an_error_that_grows_with_its_square_passes_the_tolerance():
    rates = learning_rates("linear", 1.0, 48)
    share = [sum(rates[:step]) / sum(rates) for step in (12, 24, 48)]
    errors = {0: 0.0} | {step: 8.0 * s**2 for step, s in zip((12, 24, 48), share, strict=True)}
    assert trusted_share(errors, rates, 0.5) == pytest.approx(0.25)  # 8 * 0.25^2
    assert trusted_share(errors, rates, 4.0) == pytest.approx(0.5**0.5)
    assert trusted_share(errors, rates, 9.0) == 1.0
    assert trusted_share({0: 0.0, 12: 0.1, 24: math.nan}, rates, 0.5) == pytest.approx(share[0])
    assert trusted_share({0: 0.0, 12: -math.inf}, rates, 0.5) == 0.0
    assert trusted_share({0: 0.0, 1: 0.0}, [0.0], 0.5) == 1.0


def test_segments_are_equal_in_cumulative_learning_rate():
    rates = learning_rates("linear", 1.0, 100)
    steps = equal_segments(rates, 4)
    shares = [sum(rates[a:b]) / sum(rates) for a, b in zip([0, *steps], steps, strict=False)]
    assert shares == pytest.approx([0.25] * 4, abs=0.02)
    assert equal_segments(rates, 1) == [100]
    assert equal_segments([1.0, 1.0], 9) == [1, 2]


@pytest.mark.parametrize(
    ("trusted", "longest_to_first"), [(1.0, 1.0), (0.125, 1.0), (0.0625, 1.0), (0.05, 2.0), (0.041, 4.0), (0.001, 4.0)]
)
def test_segments_grow_where_the_base_is_trusted_for_less_than_half_of_one(trusted, longest_to_first):
    rates, field = [1.0] * 4_000, field_of([{"w": torch.ones(OUT, IN)}] * 16, [TOKENS] * 16, [4] * 16)
    steps = plan_anchors(field, rates, trusted, 8, 32).anchor_steps
    lengths = [end - start for start, end in pairwise((0, *steps))]
    assert lengths[-1] / lengths[0] == pytest.approx(longest_to_first, rel=0.02)
    ratios = [later / earlier for earlier, later in pairwise(lengths)]
    assert max(ratios) - min(ratios) < 0.02
    on_a_budget = plan_anchors(field, rates, trusted, 8, 32, to_the_last=True).anchor_steps
    assert len({end - start for start, end in pairwise((0, *on_a_budget))}) == 1


def test_rotating_subsets_visit_all_nodes_equally():
    turns = [[portion.block for portion in turn] for turn in rotation(6, 4, 3, seed=1)]
    assert all(len(set(turn)) == 4 for turn in turns)
    assert sorted(block for turn in turns for block in turn) == sorted([*range(6)] * 2)


def test_every_row_of_a_block_is_measured_before_one_is_measured_again():
    turns = rotation(6, 4, 9, seed=1, of=3)
    assert all(len({portion.block for portion in turn}) == 4 for turn in turns)
    visited = [portion for turn in turns for portion in turn]
    assert sorted((p.block, p.first) for p in visited[:18]) == [(b, f) for b in range(6) for f in range(3)]
    assert visited[18:] == visited[:18]
    assert {portion.first for portion in visited[:6]} == {0}  # all blocks, before any block's second portion


def test_blocks_in_portions_pay_for_more_anchors():
    rates = learning_rates("linear", 1.0, 400)
    field = field_of([{"w": torch.ones(OUT, IN)}] * 8, [TOKENS] * 8, [62] * 8)
    whole, parts = (plan_anchors(field, rates, 0.0, 64, 200, to_the_last=True, portions=of) for of in (1, 4))
    assert (len(whole.anchor_steps), whole.blocks_per_anchor) == (3, 1)  # three blocks are paid for
    assert (len(parts.anchor_steps), parts.blocks_per_anchor, parts.portions) == (12, 1, 4)


def test_more_blocks_than_the_field_has_are_refused():
    with pytest.raises(ValueError, match="7 blocks per anchor asked of a field of 6"):
        rotation(6, 7, 1, seed=0)


@pytest.mark.parametrize("steps", [[20], [20, 10, STEPS], [0, STEPS]])
def test_anchor_steps_must_rise_to_the_end(steps):
    problem = Quadratic()
    batches = virtual_batches(problem.field(), 4, STEPS, seed=0)
    with pytest.raises(ValueError, match="must rise from above 0 to 40"):
        integrated(problem, batches, trainable("full")[1], ADAMW, [1e-3] * STEPS, AnchorPlan(tuple(steps), 2))
