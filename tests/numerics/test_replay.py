import math

import pytest
import torch

from foretune.tasks.numerics.field import virtual_batches
from foretune.tasks.numerics.optimizers import OptimizerSettings
from foretune.tasks.numerics.replay import FullAdapter, LoraAdapter, replay
from foretune.tasks.numerics.schedules import learning_rates
from tests.numerics.fields import field_of

SHAPES = {"first": (6, 5), "second": (4, 7)}
STEPS, RANK, SCALE, RATE = 10, 3, 2.0, 0.02
CASES = {
    "adamw": OptimizerSettings("adamw", max_grad_norm=None),
    "adamw, decay": OptimizerSettings("adamw", weight_decay=0.1, max_grad_norm=None),
    "adamw, clipped": OptimizerSettings("adamw", weight_decay=0.01, max_grad_norm=4.0),
    "sgd, nesterov, decay": OptimizerSettings("sgd", 0.05, momentum=0.9, nesterov=True, max_grad_norm=None),
    "sgd, clipped": OptimizerSettings("sgd", max_grad_norm=1.0),
}


class LinearLoss(torch.nn.Module):
    """Adapted weights under the loss sum <G, W>: its gradient in W is G wherever W is."""

    def __init__(self, initial_a, weights):
        super().__init__()
        self.a, self.b = torch.nn.ParameterDict(), torch.nn.ParameterDict()
        self.w = torch.nn.ParameterDict({name: w.clone() for name, w in weights.items()})
        for name, a in initial_a.items():
            self.a[name] = torch.nn.Parameter(a.clone())
            self.b[name] = torch.nn.Parameter(torch.zeros(SHAPES[name][0], RANK))

    def forward(self, gradients):
        if len(self.a):
            return sum((g * (SCALE * self.b[n] @ self.a[n])).sum() for n, g in gradients.items())
        return sum((g * self.w[n]).sum() for n, g in gradients.items())

    def delta(self, weights):
        if len(self.a):
            return {n: (SCALE * self.b[n] @ self.a[n]).detach() for n in self.a}
        return {n: self.w[n].detach() - weights[n] for n in self.w}


def train(model, trained, settings, rates, micro_batches):
    """The real thing: torch's optimiser on a real module, micro-batches accumulated, gradients clipped."""
    common = {"lr": RATE, "weight_decay": settings.weight_decay}
    if settings.name == "adamw":
        optimizer = torch.optim.AdamW(trained, betas=settings.betas, eps=settings.eps, **common)
    else:
        optimizer = torch.optim.SGD(trained, momentum=settings.momentum, nesterov=settings.nesterov, **common)
    clipped = []
    for step, rate in enumerate(rates):
        optimizer.zero_grad()
        for gradients in micro_batches[step]:
            (model(gradients) / len(micro_batches[step])).backward()
        if settings.max_grad_norm:
            norm = torch.nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
            clipped += [step] if norm > settings.max_grad_norm else []
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    return tuple(clipped)


@pytest.fixture
def weights():
    torch.manual_seed(0)
    return {name: torch.randn(shape) for name, shape in SHAPES.items()}


@pytest.fixture
def initial_a():
    torch.manual_seed(1)
    return {name: torch.randn(RANK, shape[1]) for name, shape in SHAPES.items()}


@pytest.fixture
def micro_batches():
    torch.manual_seed(2)
    return [[{n: torch.randn(s) for n, s in SHAPES.items()} for _ in range(2)] for _ in range(STEPS)]


def averaged(micro_batches):
    return lambda step, name: sum(batch[name] for batch in micro_batches[step]) / len(micro_batches[step])


def lora(initial_a):
    return LoraAdapter(initial_a, SCALE, {name: shape[0] for name, shape in SHAPES.items()})


def assert_same(ours, theirs):
    for name, delta in theirs.items():
        torch.testing.assert_close(ours[name], delta, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_lora_replay_equals_real_training_on_a_linear_loss(settings, schedule, weights, initial_a, micro_batches):
    rates = learning_rates(schedule, RATE, STEPS, warmup_steps=3)
    model = LinearLoss(initial_a, weights)
    clipped = train(model, [*model.a.values(), *model.b.values()], settings, rates, micro_batches)
    replayed = replay(averaged(micro_batches), lora(initial_a), settings, rates)
    assert_same(replayed.delta, model.delta(weights))
    assert replayed.clipped_steps == clipped
    assert bool(clipped) == bool(settings.max_grad_norm)


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_full_replay_equals_real_training_on_a_linear_loss(settings, weights, micro_batches):
    rates = learning_rates("linear", RATE, STEPS, warmup_steps=3)
    model = LinearLoss({}, weights)
    train(model, list(model.w.values()), settings, rates, micro_batches)
    replayed = replay(averaged(micro_batches), FullAdapter(weights), settings, rates)
    assert_same(replayed.delta, model.delta(weights))


def test_freezing_a_would_miss_the_real_run(weights, initial_a, micro_batches):
    """Guards the guard: the moving A factor is visible at the tolerance used above."""
    settings = CASES["adamw"]
    rates = learning_rates("linear", RATE, STEPS)
    model = LinearLoss(initial_a, weights)
    train(model, list(model.b.values()), settings, rates, micro_batches)
    moving = replay(averaged(micro_batches), lora(initial_a), settings, rates).delta
    assert float((moving["first"] - model.delta(weights)["first"]).norm()) > 1e-2


def test_chained_segments_equal_one_run(initial_a, micro_batches):
    settings = CASES["adamw, clipped"]
    rates = learning_rates("cosine", RATE, STEPS, warmup_steps=2)
    whole = replay(averaged(micro_batches), lora(initial_a), settings, rates)
    part = replay(averaged(micro_batches), lora(initial_a), settings, rates, stop=4)
    kept = {name: tensor.clone() for name, tensor in part.state.parameters.items()}
    rest = replay(averaged(micro_batches), lora(initial_a), settings, rates, start=part.state)
    assert all(torch.equal(rest.delta[name], delta) for name, delta in whole.delta.items())
    assert part.clipped_steps + rest.clipped_steps == whole.clipped_steps
    assert all(torch.equal(part.state.parameters[name], tensor) for name, tensor in kept.items())


def test_snapshots_are_the_run_stopped_there(initial_a, micro_batches):
    settings = CASES["adamw, decay"]
    rates = learning_rates("linear", RATE, STEPS)
    whole = replay(averaged(micro_batches), lora(initial_a), settings, rates, snapshots=(0, 3, STEPS))
    stopped = replay(averaged(micro_batches), lora(initial_a), settings, rates, stop=3)
    assert sorted(whole.snapshots) == [0, 3, STEPS]
    assert all(torch.equal(whole.delta_at(3)[name], delta) for name, delta in stopped.delta.items())
    assert all(torch.equal(whole.delta_at(STEPS)[name], delta) for name, delta in whole.delta.items())


def test_one_block_per_batch_replays_the_batches_themselves(initial_a, micro_batches):
    """A field whose blocks are whole batches of equal tokens gives exactly those batches' gradients."""
    sums = [{name: 7 * gradient for name, gradient in step[0].items()} for step in micro_batches]
    field = field_of(sums, [7] * STEPS, [8] * STEPS)
    batches = virtual_batches(field, 8, STEPS, seed=0)
    for step, (block,) in enumerate(batches.groups):
        torch.testing.assert_close(batches.gradient(step, "first"), micro_batches[block][0]["first"])


def test_a_gradient_that_is_not_finite_stops_the_replay(initial_a):
    settings = CASES["adamw"]
    with pytest.raises(ValueError, match="gradient norm nan at virtual step 0"):
        replay(lambda step, name: torch.full(SHAPES[name], math.nan), lora(initial_a), settings, [1e-3])


def test_a_stop_beyond_the_schedule_is_refused(initial_a, micro_batches):
    with pytest.raises(ValueError, match="stop=11 must lie between step 0 and 10, the schedule's end"):
        replay(averaged(micro_batches), lora(initial_a), CASES["adamw"], [1e-3] * 10, stop=11)
