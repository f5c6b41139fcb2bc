"""The loss along an anchored path, where it is known: a quadratic bowl that full fine-tuning slides into."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from foretune.tasks.inputs.training import TrainingSettings
from foretune.tasks.numerics.drift import Drift
from foretune.tasks.numerics.replay import FullAdapter
from foretune.tasks.prediction.trajectory import DRIFT, HELDOUT_DRIFT, VirtualRun, along, anchored, single_anchor
from tests.numerics.fields import field_of

ROWS, TOKENS = 8, 10
UNHEARD = SimpleNamespace(emit=lambda *_, **__: None)  # progress events


@dataclass(frozen=True)
class Gradients:
    sums: dict
    tokens: float
    loss_sum: float


class Bowl:
    """Rows whose mean loss is 1/2 h |W - goal|^2; counts how often they are looked at."""

    def __init__(self, h=0.5):
        self.h, self.goal, self.looks = h, torch.ones(3, 2), 0

    def loss(self, delta):
        self.looks += 1
        return 0.5 * self.h * float((delta.get("w", torch.zeros(3, 2)) - self.goal).square().sum())

    def gradients(self, delta):
        mean = self.h * (delta["w"] - self.goal)
        return Gradients({"w": TOKENS * mean}, TOKENS, TOKENS * self.loss(delta))


def run_in(bowl, rate, steps):
    training = TrainingSettings(
        optimizer="sgd", learning_rate=rate, epochs=steps, batch_size=2 * ROWS, lr_scheduler_type="linear"
    )
    zero = {"w": torch.zeros(3, 2)}
    node = {"w": -TOKENS * bowl.h * bowl.goal}
    field = field_of([node, node], [TOKENS, TOKENS], [ROWS, ROWS])
    return VirtualRun(FullAdapter(zero), field, training, steps)


def at_base(bowl):
    return bowl.loss({}), {"w": -bowl.h * bowl.goal}


def followed(bowl, virtual, stops, keep=lambda *_: None):
    return anchored(virtual, stops, 1, [bowl, bowl], bowl, at_base(bowl), UNHEARD, keep)


def measured_along(bowl, virtual, stops):
    """The trajectory with anchors at `stops`, and both drifts along it as a later run reads them."""
    kept = {DRIFT: [], HELDOUT_DRIFT: []}
    trajectory = followed(bowl, virtual, stops, lambda what, step, moved: kept[what].append((step, moved)))

    def drift(what):
        travels = [virtual.travelled[step] for step, _ in kept[what]]
        return Drift(travels, lambda point, name: kept[what][point][1][name])

    return trajectory, drift(DRIFT), drift(HELDOUT_DRIFT)


@pytest.mark.parametrize(
    ("stops", "looked_at"), [([40], [40]), ([10, 40], [40]), ([5, 10, 40], [5, 40]), ([5, 10, 20, 40], [10, 40])]
)
def test_held_out_rows_are_looked_at_on_every_second_stop_the_last_included(stops, looked_at):
    bowl = Bowl()
    assert [point["step"] for point in followed(bowl, run_in(bowl, 0.05, 40), stops).points] == [0, *looked_at]


def test_the_predicted_loss_is_the_integral_of_the_gradient_along_the_path():
    bowl = Bowl()
    virtual = run_in(bowl, 0.05, 40)
    fine = followed(bowl, virtual, [10, 20, 30, 40]).points
    assert fine[-1]["evaluated_loss"] < 0.5 * fine[0]["evaluated_loss"]
    for point in fine[1:]:
        assert point["predicted_loss"] == pytest.approx(point["evaluated_loss"], abs=0.01)
    # In one segment the gradient is linear in the weights and the path is straight: the trapezoid is exact.
    assert followed(bowl, virtual, [40]).points[-1]["predicted_loss"] == pytest.approx(
        followed(bowl, virtual, [40]).points[-1]["evaluated_loss"], abs=1e-6
    )


def test_the_frozen_field_is_followed_to_its_first_miss_and_on_from_there():
    bowl = Bowl()
    virtual, at = run_in(bowl, 0.05, 40), [10, 20, 30, 40]
    whole = single_anchor(virtual.replayed(at), at, bowl, at_base(bowl), UNHEARD)
    missed = [abs(p["predicted_loss"] - p["evaluated_loss"]) for p in whole.points]
    assert missed == sorted(missed)
    path = virtual.replayed(at)
    part = single_anchor(path, at, bowl, at_base(bowl), UNHEARD, tolerance=missed[1])
    assert [p["step"] for p in part.points] == [0, 10, 20]
    base, bowl.looks = at_base(bowl), 0
    rest = single_anchor(path, at, bowl, base, UNHEARD, known=part)
    assert rest.points == whole.points
    assert bowl.looks == 2
    assert torch.equal(rest.delta["w"], whole.delta["w"])


@pytest.mark.parametrize(("tolerance", "steps"), [(None, [0, 10, 20, 40]), (1e9, [0, 10])])
def test_a_loss_that_is_not_a_number_ends_only_a_path_with_a_tolerance(tolerance, steps):
    bowl = Bowl()
    virtual, at, base = run_in(bowl, 0.05, 40), [10, 20, 40], at_base(bowl)
    bowl.loss = lambda delta: float("nan")
    path = virtual.replayed(at)
    trajectory = single_anchor(path, at, bowl, base, UNHEARD, tolerance=tolerance)
    assert [p["step"] for p in trajectory.points] == steps
    assert torch.equal(trajectory.delta["w"], path.delta_at(steps[-1])["w"])


def test_a_run_along_its_own_path_is_the_run_that_measured_it():
    bowl = Bowl()
    virtual = run_in(bowl, 0.05, 40)
    measured, drift, heldout_drift = measured_along(bowl, virtual, [10, 20, 30, 40])
    bowl.looks = 0
    again = along(virtual, drift, heldout_drift, bowl, at_base(bowl), UNHEARD)
    assert torch.allclose(again.delta["w"], measured.delta["w"], atol=1e-6)
    assert [p["step"] for p in again.points] == [p["step"] for p in measured.points] == [0, 20, 40]
    for mine, theirs in zip(again.points, measured.points, strict=True):
        assert mine["evaluated_loss"] == pytest.approx(theirs["evaluated_loss"], abs=1e-5)
        assert mine["predicted_loss"] == pytest.approx(mine["evaluated_loss"], abs=0.01)
    assert bowl.looks == 3  # base, half way, end: forward passes alone
    assert again.measured_rows == 0 and again.anchor_steps == [0]


@pytest.mark.parametrize(("rate", "steps"), [(0.03, 40), (0.04, 40), (0.05, 25), (0.1, 20)])
def test_another_rate_along_the_path_ends_where_it_would_have_gone(rate, steps):
    bowl = Bowl()
    _, drift, heldout_drift = measured_along(bowl, run_in(bowl, 0.05, 40), [10, 20, 30, 40])
    other = run_in(bowl, rate, steps)
    own = followed(bowl, other, [steps // 4, steps // 2, 3 * steps // 4, steps])
    led = along(other, drift, heldout_drift, bowl, at_base(bowl), UNHEARD)
    frozen = other.replayed([steps]).delta_at(steps)["w"]
    assert float((led.delta["w"] - own.delta["w"]).norm()) < 0.06 * float((frozen - own.delta["w"]).norm())
    assert led.points[-1]["predicted_loss"] == pytest.approx(led.points[-1]["evaluated_loss"], abs=0.01)


def test_a_path_that_was_trusted_from_the_base_alone_leads_over_the_frozen_field():
    bowl = Bowl()
    virtual, nothing = run_in(bowl, 0.001, 40), Drift((), None)
    led = along(virtual, nothing, nothing, bowl, at_base(bowl), UNHEARD)
    assert torch.equal(led.delta["w"], virtual.replayed([40]).delta_at(40)["w"])
    assert [p["step"] for p in led.points] == [0, 40]
