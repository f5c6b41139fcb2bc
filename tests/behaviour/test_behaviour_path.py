"""Suites along the path: the band that noise makes, where a suite leaves it, and what of the gain was there before."""

from __future__ import annotations

import pytest

from foretune.tasks.behaviour.behaviour_path import loss_points, suite_along
from foretune.tasks.behaviour.items import Suite
from foretune.tasks.behaviour.settings import ComparisonSettings
from foretune.tasks.report.behaviour_path import behaviour_path_lines, departure_in_words

SETTINGS = ComparisonSettings(confidence=0.95, resamples=1000, seed=0)
ITEMS = [f"item-{n}" for n in range(10)]
STORED = {
    "end": 40,
    "variants": [
        {"kind": "waypoint", "step": step, "seed": 1, "loss": loss} for step, loss in ((10, 2.6), (20, 2.2), (30, 2.05))
    ]
    + [{"kind": "order", "step": 40, "seed": 1001, "loss": 2.01}],
}
PATH = [{"step": 0, "evaluated_loss": 3.0}, {"step": 20, "evaluated_loss": 2.2}, {"step": 40, "evaluated_loss": 2.0}]
POINTS = loss_points(PATH, STORED)


def scores(level, spread=0.01):
    return [{"digest": digest, "score": level + spread * n} for n, digest in enumerate(ITEMS)]


def between(ways, orders=(), nulls=()):
    at = [("waypoint", step, 1, level) for step, level in ways]
    at += [("order", 40, 1000 + n, level) for n, level in enumerate(orders)]
    at += [("null", 40, n, level) for n, level in enumerate(nulls)]
    return [{"kind": kind, "step": step, "seed": seed, **row} for kind, step, seed, at_ in at for row in scores(at_)]


def along(direction, ways, end, orders=(), nulls=()):
    suite = Suite(name="refusal", measures="", direction=direction, unit="share right")
    return suite_along(suite, scores(0.5), scores(end), between(ways, orders, nulls), POINTS, SETTINGS)


def test_the_share_of_the_gain_is_that_of_the_evaluated_losses():
    assert [(point["step"], point["loss"]) for point in POINTS] == [
        (0, 3.0),
        (10, 2.6),
        (20, 2.2),
        (30, 2.05),
        (40, 2.0),
    ]
    assert [point["gain_share"] for point in POINTS] == pytest.approx([0, 0.4, 0.8, 0.95, 1])


def test_no_gain_has_no_share():
    rising = [{"step": 0, "evaluated_loss": 2.0}, {"step": 40, "evaluated_loss": 2.1}]
    assert {point["gain_share"] for point in loss_points(rising, STORED)} == {None}


def test_a_suite_leaves_its_band_where_it_is_worse_than_noise_makes_it():
    told = along("higher", [(10, 0.49), (20, 0.46), (30, 0.3)], 0.2, orders=[0.23], nulls=[0.52])
    assert told["band"] == pytest.approx(0.03) and told["orders"] == pytest.approx([0.03])
    assert (told["leaves_at"], told["last_within"]) == (20, 10) and told["gain_within"] == pytest.approx(0.4)
    assert [point["change"] for point in told["curve"]] == pytest.approx([0, -0.01, -0.04, -0.2, -0.3])
    assert departure_in_words(told) == (
        "refusal is beyond what noise does from step 20 on; at step 10 it is not, with 40% of the gain"
    )


@pytest.mark.parametrize(
    ("direction", "ways", "end", "noise"),
    [
        ("higher", [(10, 0.6), (20, 0.7)], 0.9, [0.5]),  # better
        ("lower", [(10, 0.4), (20, 0.3)], 0.2, [0.5]),  # better too
        ("higher", [(10, 0.4), (20, 0.3)], 0.49, [0.52]),  # it came back
        ("higher", [(10, 0.45), (20, 0.4)], 0.4, [0.7]),  # noise does as much
        ("higher", [(10, 0.4)], 0.2, []),  # nothing to hold it against
    ],
)
def test_what_is_better_or_comes_back_or_is_no_more_than_noise_does_not_leave(direction, ways, end, noise):
    told = along(direction, ways, end, nulls=noise)
    assert (told["leaves_at"], told["last_within"], told["gain_within"]) == (None, None, None)
    assert behaviour_path_lines({"suites": [told]}) == []


def test_either_way_is_a_departure_where_neither_is_better():
    assert along("either", [(10, 0.5), (20, 0.8)], 0.9, nulls=[0.49])["leaves_at"] == 20


def test_a_suite_that_was_never_asked_has_no_curve():
    suite = Suite(name="refusal", measures="", direction="higher", unit="")
    assert suite_along(suite, scores(0.5), scores(0.4), [], POINTS, SETTINGS)["curve"] == []


def test_few_items_leave_nothing():
    suite = Suite(name="refusal", measures="", direction="higher", unit="")
    few = [row for row in between([(10, 0.4)], nulls=[0.5]) if row["digest"] in ITEMS[:7]]
    assert suite_along(suite, scores(0.5), scores(0.2), few, POINTS, SETTINGS)["leaves_at"] is None
