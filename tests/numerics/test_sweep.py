"""Runs replayed side by side are the runs replayed alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from foretune.tasks.numerics.gradient_shift import GradientShift
from foretune.tasks.numerics.optimizers import OptimizerSettings
from foretune.tasks.numerics.replay import FullAdapter, LoraAdapter, replay
from foretune.tasks.numerics.sweep import Member, sweep
from foretune.tasks.numerics.vectors import norm

SHAPES = {"first": (6, 5), "second": (4, 7)}


def lora(rank, scale, names=tuple(SHAPES), seed=0):
    torch.manual_seed(seed)
    initial = {name: torch.randn(rank, SHAPES[name][1]) for name in names}
    return LoraAdapter(initial, scale, {name: SHAPES[name][0] for name in names})


def gradients(step, name):
    generator = torch.Generator().manual_seed(100 * step + len(name))
    return torch.randn(SHAPES[name], generator=generator)


MEMBERS = [
    Member(lora(2, 2.0), OptimizerSettings("adamw", max_grad_norm=1.0), [1e-2] * 5, (2, 5)),
    Member(lora(3, 0.5, seed=1), OptimizerSettings("adamw", weight_decay=0.1), [3e-2] * 8, (4, 8)),
    Member(lora(2, 1.0, names=("second",)), OptimizerSettings("sgd", momentum=0.9), [1e-2] * 6, (6,)),
    Member(FullAdapter({n: torch.randn(s) for n, s in SHAPES.items()}), OptimizerSettings("adamw"), [1e-3] * 3, (3,)),
]


def test_side_by_side_is_each_alone():
    for member, swept in zip(MEMBERS, sweep(gradients, list(SHAPES), MEMBERS), strict=True):
        alone = replay(gradients, member.adapter, member.settings, member.rates, snapshots=member.snapshots)
        assert swept.fault is None
        assert set(swept.snapshots) == set(member.snapshots)
        for step in member.snapshots:
            torch.testing.assert_close(swept.delta_at(step), alone.delta_at(step), rtol=1e-5, atol=1e-6)
        assert swept.distances[-1] == pytest.approx(norm(alone.delta), rel=1e-4)
        assert len(swept.distances) == len(member.rates)


def test_a_shift_moves_each_member_by_its_own_weights():
    """Side by side with weighted points is alone over the gradients that these make."""

    def shift(point, name):
        generator = torch.Generator().manual_seed(7 * point + len(name))
        return torch.randn(SHAPES[name], generator=generator).bfloat16()

    shifts = [[{}, {0: 0.5}, {0: 0.25, 1: 0.75}, *[{1: 1.0}] * (len(member.rates) - 3)] for member in MEMBERS]
    members = [replace(member, shifts=each) for member, each in zip(MEMBERS, shifts, strict=True)]
    for member, swept in zip(members, sweep(gradients, list(SHAPES), members, shift), strict=True):

        def shifted(step, name, weights=member.shifts):
            return gradients(step, name) + sum(w * shift(p, name).float() for p, w in weights[step].items())

        alone = replay(shifted, member.adapter, member.settings, member.rates, snapshots=member.snapshots)
        for step in member.snapshots:
            torch.testing.assert_close(swept.delta_at(step), alone.delta_at(step), rtol=1e-4, atol=1e-5)


def test_weights_of_a_shift_are_its_interpolation():
    stored = torch.randn(3, 4, 5)
    shift = GradientShift((1.0, 2.0, 4.0), lambda point, name: stored[point])
    for elapsed in (0.0, 0.3, 1.0, 1.7, 3.9, 4.0, 9.0):
        at, weights = shift.at(elapsed, "w"), shift.weights(elapsed)
        mixed = sum((w * stored[point] for point, w in weights.items()), torch.zeros(4, 5))
        torch.testing.assert_close(mixed, torch.zeros(4, 5) if at is None else at)


def test_a_run_that_leaves_the_numbers_stops_and_the_others_go_on():
    wild = Member(lora(2, 2.0), OptimizerSettings("sgd", max_grad_norm=None), [1e18] * 5, (5,))
    stopped, fine = sweep(gradients, list(SHAPES), [wild, MEMBERS[0]])
    assert stopped.fault
    assert not stopped.snapshots
    assert fine.fault is None and 5 in fine.snapshots


def test_weights_that_leave_the_numbers_on_the_last_step_are_a_fault():
    (stopped,) = sweep(gradients, list(SHAPES), [Member(lora(2, 2.0), OptimizerSettings("adamw"), [1e25, 1e25], (2,))])
    assert stopped.fault
    assert 2 not in stopped.snapshots
