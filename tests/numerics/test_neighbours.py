"""The nearest directions are those of a plain sort of all cosines."""

from __future__ import annotations

import torch

from foretune.tasks.numerics import neighbours


def test_neighbours_are_those_of_a_full_sort_in_any_portion(monkeypatch):
    monkeypatch.setattr(neighbours, "AT_ONCE", 7)
    directions = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    found = neighbours.nearest_directions(directions, 3)
    for row, (places, cosines) in enumerate(zip(found.places.tolist(), found.cosines.tolist(), strict=True)):
        alike = torch.cosine_similarity(directions[row : row + 1], directions)
        order = [place for place in alike.argsort(descending=True).tolist() if place != row]
        assert places == order[:3]
        torch.testing.assert_close(torch.tensor(cosines), alike[places])
    assert neighbours.nearest_directions(directions[:2], 3).places.tolist() == [[1], [0]]
    assert neighbours.nearest_directions(directions[:0], 3).places.shape[0] == 0
