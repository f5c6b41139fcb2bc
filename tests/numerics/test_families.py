"""Families of features, and the AUROC of a name, against cases that one can count."""

from __future__ import annotations

import math

import torch

from foretune.tasks.numerics.detection import auroc
from foretune.tasks.numerics.families import cofiring, families


def test_cofiring_is_the_share_of_the_tokens_of_either():
    shared = cofiring([torch.tensor(each) for each in ([1, 2, 3, 4], [3, 4], [9], [])])
    assert shared[0, 1] == shared[1, 0] == 0.5 and shared[2, 2] == 1.0 and shared[0, 2] == 0.0 and shared[3, 3] == 0.0


def test_features_of_one_direction_or_of_the_same_tokens_are_one_family_if_they_move_alike():
    x, y, z = torch.eye(3)
    directions = torch.stack([x, x + 0.5 * y, z, z + 0.1 * x, x, -x])
    change = torch.tensor([5.0, 4.0, 3.0, 2.0, -1.0, 0.5])
    alone = torch.eye(6)
    assert families(directions, alone, change, 0.7, 0.7) == [0, 0, 2, 2, 4, 5]
    together = alone.clone()
    together[0, 5] = together[5, 0] = 1.0  # opposed directions are two things, whatever fires together
    together[0, 2] = together[2, 0] = 1.0  # directions that have nothing to do with each other too
    assert families(directions, together, change, 0.7, 0.7) == [0, 0, 2, 2, 4, 5]
    together[0, 3] = together[3, 0] = 1.0
    assert families(directions, together, change, 0.99, 0.7) == [0, 1, 2, 0, 4, 5]
    assert families(directions[:0], alone[:0, :0], change[:0], 0.7, 0.7) == []


def test_auroc_counts_pairs_and_ties_by_half():
    first, second = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([1.0, 0.0])
    assert auroc(first, second) == (2 + 1.5 + 2) / 6
    assert auroc(second, second) == 0.5 and math.isnan(auroc(first, second[:0]))
