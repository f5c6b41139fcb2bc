import itertools

import pytest
import torch

from foretune.tasks.numerics import integrator
from foretune.tasks.numerics.control_variate import estimate_mean
from foretune.tasks.numerics.field import virtual_batches
from foretune.tasks.numerics.integrator import AnchorPlan, equal_segments
from foretune.tasks.numerics.schedules import learning_rates
from foretune.tasks.numerics.steadied import steadied
from tests.numerics.fields import field_of
from tests.numerics.test_integrator import ADAMW, STEPS, TOKENS, Quadratic, integrated, train, trainable, whole

BLOCKS, SHAPE, NAMES = 40, (6, 7), "abcdefgh"


def problem(moved, blocks, seed=0):
    """Means that have `moved` since they were `before`, told by a few blocks with new scatter of size 1 per token."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(rows):
        return {name: torch.randn(rows, *SHAPE, generator=generator) for name in NAMES}

    def sums(mean, scatter):
        count = len(scatter["a"])
        return [{n: TOKENS * (mean[n] + scatter[n][row] / TOKENS**0.5) for n in NAMES} for row in range(count)]

    before, change = ({name: each[0] for name, each in drawn(1).items()} for _ in range(2))
    true = {name: before[name] + moved * change[name] for name in NAMES}
    field = field_of(sums(before, drawn(BLOCKS)), [TOKENS] * BLOCKS, [2] * BLOCKS)
    return field, sums(true, drawn(blocks)), before, true


@pytest.mark.parametrize("blocks", [1, 2, 5])
@pytest.mark.parametrize("moved", [0.0, 0.1, 0.3, 1.0])
def test_a_steadied_mean_is_nearer_to_the_truth(blocks, moved):
    plain, steady, gains = 0.0, 0.0, []
    chosen = range(blocks)

    def missed(mean, true):
        return sum(float((mean[name] - true[name]).square().sum()) for name in NAMES)

    for seed in range(30):
        field, measured, before, true = problem(moved, blocks, seed)
        measured = whole(field, chosen, measured)
        estimate = estimate_mean(field, measured)
        found = steadied(field, measured, estimate, before)
        plain, steady = plain + missed(estimate.mean, true), steady + missed(found.mean, true)
        gains.append(found.gain)
    noise = plain / 30 / (len(NAMES) * torch.Size(SHAPE).numel())
    assert sum(gains) / len(gains) == pytest.approx(moved**2 / (moved**2 + noise), abs=0.15)  # who knew both
    assert steady < (0.3 if moved == 0 else 1.1) * plain


def test_what_every_block_tells_is_taken_over_whole():
    quadratic = Quadratic()
    field, delta, every = quadratic.field(), {"w": torch.ones(5, 6)}, range(6)
    measured = whole(field, every, quadratic.block_sums(delta, every))
    estimate = estimate_mean(field, measured)
    found = steadied(field, measured, estimate, {"w": torch.zeros(5, 6)})
    assert found.gain == 1.0
    torch.testing.assert_close(found.mean, estimate.mean)


class Restless(Quadratic):
    """A block's scatter is new at every anchor, so that the base's tells nothing of it."""

    def __init__(self, noise):
        super().__init__()
        self.noise, self.generator = noise, torch.Generator().manual_seed(7)

    def block_sums(self, delta, blocks):
        found = super().block_sums(delta, blocks)
        if not delta["w"].any():
            return found
        new = self.noise * torch.randn(len(found), *delta["w"].shape, generator=self.generator)
        return [{"w": each["w"] + TOKENS * other} for each, other in zip(found, new, strict=True)]


def test_along_a_path_of_noisy_means_a_steady_one_ends_nearer_to_the_real_run():
    rates = learning_rates("linear", 0.03, STEPS)
    quadratic = Restless(noise=1.0)
    batches = virtual_batches(quadratic.field(), 4, STEPS, seed=0)
    module, adapter = trainable("full")
    truth = train(quadratic, batches, module, ADAMW, rates)

    def error(steady):
        plan, total = AnchorPlan(tuple(equal_segments(rates, 10)), 2, steady), 0.0
        for seed in range(8):
            found = integrated(quadratic, batches, adapter, ADAMW, rates, plan, seed=seed)
            total += float((found.replay.delta["w"] - truth).square().sum())
        return total

    assert error(True) < 0.9 * error(False)


@pytest.mark.parametrize(("noise", "straight"), [(0.0, True), (1.0, False)])
def test_a_segment_is_predicted_on_the_line_or_from_the_last_mean_as_the_one_before_would_have_been(
    noise, straight, monkeypatch
):
    rates = learning_rates("linear", 0.03, STEPS)
    quadratic = Restless(noise)
    batches = virtual_batches(quadratic.field(), 4, STEPS, seed=0)
    adapter, plan = trainable("full")[1], AnchorPlan(tuple(equal_segments(rates, 10)), 2)

    def corrections(nearer=None):
        """What the corrector had to change, over all anchors; `nearer`: 0 the line always, 1 the last mean always."""
        quadratic.generator.manual_seed(7)
        if nearer is not None:
            distances = itertools.cycle([float(nearer), float(1 - nearer)])
            monkeypatch.setattr(integrator, "_apart", lambda *_: next(distances))
        found = integrated(quadratic, batches, adapter, ADAMW, rates, plan)
        monkeypatch.undo()
        return sum(anchor.correction for anchor in found.anchors)

    own, line, held = corrections(), corrections(0), corrections(1)
    assert (line < held) is straight
    assert abs(own - min(line, held)) < abs(own - max(line, held))
