"""The loss along an anchored path, where it is known: a quadratic bowl that full fine-tuning slides into."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from foretune.tasks.inputs.training import TrainingSettings
from foretune.tasks.numerics.gradient_shift import GradientShift
from foretune.tasks.numerics.integrator import AnchorPlan
from foretune.tasks.numerics.replay import FullAdapter
from foretune.tasks.prediction.evaluation import HeldOut
from foretune.tasks.prediction.gradient_shifts import HELDOUT_SHIFT, TRAIN_SHIFT
from foretune.tasks.prediction.trajectory import (
    anchored_trajectory,
    frozen_gradient_trajectory,
    trajectory_along_stored_path,
)
from foretune.tasks.prediction.virtual_run import VirtualRun
from tests.numerics.fields import field_of

ROWS, TOKENS = 8, 10
SILENT = SimpleNamespace(emit=lambda *_, **__: None)  # progress events


@dataclass(frozen=True)
class Gradients:
    sums: dict
    tokens: float
    loss_sum: float


class Bowl:
    """Rows whose mean loss is 1/2 h |W - goal|^2; counts how often they are evaluated."""

    def __init__(self, h=0.5):
        self.h, self.goal, self.evaluations = h, torch.ones(3, 2), 0

    def part(self, first, of):
        assert (first, of) == (0, 1)
        return self

    def loss(self, delta):
        self.evaluations += 1
        return 0.5 * self.h * float((delta.get("w", torch.zeros(3, 2)) - self.goal).square().sum())

    def gradients(self, delta):
        mean = self.h * (delta["w"] - self.goal)
        return Gradients({"w": TOKENS * mean}, TOKENS, TOKENS * self.loss(delta))


def run_in(bowl, rate, steps):
    training = TrainingSettings(
        optimizer="sgd", learning_rate=rate, epochs=steps, batch_size=2 * ROWS, lr_scheduler_type="linear"
    )
    zero = {"w": torch.zeros(3, 2)}
    block = {"w": -TOKENS * bowl.h * bowl.goal}
    field = field_of([block, block], [TOKENS, TOKENS], [ROWS, ROWS])
    return VirtualRun(FullAdapter(zero), field, training, steps)


class Shifts:
    """Gradient shifts in memory instead of in files."""

    def __init__(self):
        self.written = {TRAIN_SHIFT: [], HELDOUT_SHIFT: []}

    def write(self, kind, step, shift):
        self.written[kind].append((step, shift))

    def read(self, kind, virtual):
        """As a later run reads them."""
        elapsed_lr = [virtual.elapsed_lr[step] for step, _ in self.written[kind]]
        return GradientShift(elapsed_lr, lambda point, name: self.written[kind][point][1][name])


def held_out(bowl):
    return HeldOut(bowl, bowl.loss({}), {"w": -bowl.h * bowl.goal})


def anchored(bowl, virtual, steps, shifts=None, most=None):
    plan = AnchorPlan(tuple(steps), 1)
    return anchored_trajectory(virtual, plan, [bowl, bowl], held_out(bowl), SILENT, shifts or Shifts(), most)


def measured_along(bowl, virtual, steps):
    """The trajectory with anchors at `steps`, and both gradient shifts along it."""
    shifts = Shifts()
    trajectory = anchored(bowl, virtual, steps, shifts)
    return trajectory, shifts.read(TRAIN_SHIFT, virtual), shifts.read(HELDOUT_SHIFT, virtual)


def frozen(replay, steps, heldout, **until):
    return frozen_gradient_trajectory(replay, steps, heldout, SILENT, **until)


@pytest.mark.parametrize(
    ("steps", "evaluated"), [([40], [40]), ([10, 40], [40]), ([5, 10, 40], [5, 40]), ([5, 10, 20, 40], [10, 40])]
)
def test_held_out_rows_are_evaluated_at_every_second_anchor_the_last_included(steps, evaluated):
    bowl = Bowl()
    assert [point["step"] for point in anchored(bowl, run_in(bowl, 0.05, 40), steps).points] == [0, *evaluated]


@pytest.mark.parametrize(("most", "evaluated"), [(1, [40]), (2, [20, 40]), (3, [15, 25, 40]), (4, [10, 20, 30, 40])])
def test_fewer_evaluations_are_spread_evenly_and_change_no_weight(most, evaluated):
    bowl, steps = Bowl(), [5, 10, 15, 20, 25, 30, 35, 40]
    few, whole = (anchored(bowl, run_in(bowl, 0.05, 40), steps, most=each) for each in (most, None))
    assert [point["step"] for point in few.points] == [0, *evaluated]
    assert torch.equal(few.delta["w"], whole.delta["w"])
    assert few.points[-1]["evaluated_loss"] == whole.points[-1]["evaluated_loss"]


def test_the_predicted_loss_is_the_integral_of_the_gradient_along_the_path():
    bowl = Bowl()
    virtual = run_in(bowl, 0.05, 40)
    fine = anchored(bowl, virtual, [10, 20, 30, 40]).points
    assert fine[-1]["evaluated_loss"] < 0.5 * fine[0]["evaluated_loss"]
    for point in fine[1:]:
        assert point["predicted_loss"] == pytest.approx(point["evaluated_loss"], abs=0.01)
    # In one segment the gradient is linear in the weights and the path is straight: the trapezoid is exact.
    assert anchored(bowl, virtual, [40]).points[-1]["predicted_loss"] == pytest.approx(
        anchored(bowl, virtual, [40]).points[-1]["evaluated_loss"], abs=1e-6
    )


def test_a_frozen_field_trajectory_ends_where_it_diverges_and_can_be_continued():
    bowl = Bowl()
    virtual, at = run_in(bowl, 0.05, 40), [10, 20, 30, 40]
    whole = frozen(virtual.replayed(at), at, held_out(bowl))
    errors = [abs(p["predicted_loss"] - p["evaluated_loss"]) for p in whole.points]
    assert errors == sorted(errors)
    path = virtual.replayed(at)
    part = frozen(path, at, held_out(bowl), tolerance=errors[1])
    assert [p["step"] for p in part.points] == [0, 10, 20]
    heldout, bowl.evaluations = held_out(bowl), 0
    rest = frozen(path, at, heldout, known=part)
    assert rest.points == whole.points
    assert bowl.evaluations == 2
    assert torch.equal(rest.delta["w"], whole.delta["w"])


@pytest.mark.parametrize(("tolerance", "steps"), [(None, [0, 10, 20, 40]), (1e9, [0, 10])])
def test_a_loss_that_is_not_a_number_ends_only_a_path_with_a_tolerance(tolerance, steps):
    bowl = Bowl()
    virtual, at, heldout = run_in(bowl, 0.05, 40), [10, 20, 40], held_out(bowl)
    bowl.loss = lambda delta: float("nan")
    path = virtual.replayed(at)
    trajectory = frozen(path, at, heldout, tolerance=tolerance)
    assert [p["step"] for p in trajectory.points] == steps
    assert torch.equal(trajectory.delta["w"], path.delta_at(steps[-1])["w"])


def test_a_run_along_its_own_path_is_the_run_that_measured_it():
    bowl = Bowl()
    virtual = run_in(bowl, 0.05, 40)
    measured, shift, heldout_shift = measured_along(bowl, virtual, [10, 20, 30, 40])
    bowl.evaluations = 0
    again = trajectory_along_stored_path(virtual, shift, heldout_shift, held_out(bowl), SILENT)
    assert torch.allclose(again.delta["w"], measured.delta["w"], atol=1e-6)
    assert [p["step"] for p in again.points] == [p["step"] for p in measured.points] == [0, 20, 40]
    for mine, theirs in zip(again.points, measured.points, strict=True):
        assert mine["evaluated_loss"] == pytest.approx(theirs["evaluated_loss"], abs=1e-5)
        assert mine["predicted_loss"] == pytest.approx(mine["evaluated_loss"], abs=0.01)
    assert bowl.evaluations == 3  # base, half way, end: forward passes alone
    assert again.measured_rows == 0 and again.anchor_steps == [0]


@pytest.mark.parametrize(("rate", "steps"), [(0.03, 40), (0.04, 40), (0.05, 25), (0.1, 20)])
def test_another_rate_along_the_path_ends_where_it_would_have_gone(rate, steps):
    bowl = Bowl()
    _, shift, heldout_shift = measured_along(bowl, run_in(bowl, 0.05, 40), [10, 20, 30, 40])
    other = run_in(bowl, rate, steps)
    own = anchored(bowl, other, [steps // 4, steps // 2, 3 * steps // 4, steps])
    led = trajectory_along_stored_path(other, shift, heldout_shift, held_out(bowl), SILENT)
    over_frozen_field = other.replayed([steps]).delta_at(steps)["w"]
    assert float((led.delta["w"] - own.delta["w"]).norm()) < 0.06 * float((over_frozen_field - own.delta["w"]).norm())
    assert led.points[-1]["predicted_loss"] == pytest.approx(led.points[-1]["evaluated_loss"], abs=0.01)


def test_a_path_that_was_trusted_from_the_base_alone_leads_over_the_frozen_field():
    bowl = Bowl()
    virtual, nothing = run_in(bowl, 0.001, 40), GradientShift((), None)
    led = trajectory_along_stored_path(virtual, nothing, nothing, held_out(bowl), SILENT)
    assert torch.equal(led.delta["w"], virtual.replayed([40]).delta_at(40)["w"])
    assert [p["step"] for p in led.points] == [0, 40]
