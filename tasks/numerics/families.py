"""Features that are fragments of one thing: their directions are alike, or they fire on the same tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def cofiring(tokens: list[Tensor]) -> Tensor:
    """[k, k] Jaccard index: tokens on which both fire, as a share of those on which either does.

    A share of the rarer one's would make everything a fragment of a feature that fires nearly everywhere.
    """
    sets = [set(each.tolist()) for each in tokens]
    shared = torch.zeros(len(sets), len(sets))
    for i, first in enumerate(sets):
        for j, second in enumerate(sets[: i + 1]):
            both = len(first & second)
            shared[i, j] = shared[j, i] = both / (len(first) + len(second) - both) if both else 0.0
    return shared


def families(directions: Tensor, fired: Tensor, change: Tensor, cosine: float, together: float) -> list[int]:
    """Of k features, the strongest first, each one's leader by its place: itself, or the first that it goes with.

    `directions` [k, d] are decoder rows, `fired` [k, k] as from `cofiring`, `change` [k]. A feature joins a leader that
    moves to the same side, if their directions have at least this cosine, or they fire on this share of the same
    tokens while their directions are not opposed. Joining a leader, not any member, keeps chains of half-alike features
    apart.
    """
    unit = torch.nn.functional.normalize(directions.double(), dim=1)
    alike = unit @ unit.T
    linked = (alike >= cosine) | ((fired.to(alike) >= together) & (alike > 0))
    linked &= change.sign()[:, None] == change.sign()[None]
    leaders: list[int] = []
    for place in range(len(directions)):
        leads = [leader for leader in dict.fromkeys(leaders) if bool(linked[place, leader])]
        leaders.append(leads[0] if leads else place)
    return leaders
