"""Attribution to nodes and weights against closed forms, real patches and completeness, on a linear toy and a tiny
Llama."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from foretune.tasks.loading.residual_parts import residual_parts
from foretune.tasks.numerics.node_attribution import direct_scores, node_scores, upstream
from foretune.tasks.numerics.nodes import NodeValues, Parts, missing, patched, recorded
from foretune.tasks.numerics.quadrature import gauss_legendre
from foretune.tasks.numerics.smallest_sets import smallest_set
from foretune.tasks.numerics.weight_attribution import weight_scores

D, HEADS, TOKENS = 6, 2, 3


class Block(nn.Module):
    """Attention that mixes positions by fixed weights, and an MLP; both linear."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.out = nn.Linear(D, D, bias=False), nn.Linear(D, D)
        self.before, self.mlp = nn.Identity(), nn.Linear(D, D)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixing = torch.tril(torch.ones(TOKENS, TOKENS, dtype=x.dtype))
        x = x + self.out(mixing @ self.value(x))
        return x + self.mlp(self.before(x))


class Toy(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding, self.blocks = nn.Embedding(5, D), nn.ModuleList([Block(), Block()])
        self.double().requires_grad_(False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x)
        return x


def toy_parts(toy: Toy) -> Parts:
    blocks: list[Any] = list(toy.blocks)
    return Parts(blocks, [b.out for b in blocks], [b.mlp for b in blocks], [b.before for b in blocks], HEADS)


IDS, READ = torch.tensor([[1, 3, 0]]), torch.linspace(-1, 1, D, dtype=torch.float64)


def recorded_run(module: nn.Module, parts: Parts, ids: torch.Tensor) -> NodeValues:
    with torch.no_grad(), recorded(parts) as values:
        module(ids)
    return values


@pytest.fixture(scope="module")
def toys() -> tuple[Toy, Parts, NodeValues, float]:
    base, moved = Toy(0), Toy(1)
    difference = float((moved(IDS)[0, -1] - base(IDS)[0, -1]) @ READ)
    return base, toy_parts(base), recorded_run(moved, toy_parts(moved), IDS), difference


def metric_of(toy: Toy, rows: int = 1) -> torch.Tensor:
    return toy(IDS.expand(rows, -1))[:, -1] @ READ


def alone(toy: Toy, parts: Parts, values: NodeValues) -> torch.Tensor:
    """What really patching every node by itself changes."""
    gates = torch.eye(len(parts.nodes()), dtype=torch.float64)
    before = metric_of(toy)
    with torch.no_grad(), patched(parts, values, gates):
        return metric_of(toy, len(gates)) - before


def test_on_a_linear_network_one_point_is_the_exact_effect_of_each_node(toys) -> None:
    base, parts, values, _ = toys
    scores = node_scores(parts, values, lambda: metric_of(base)[0], 1)
    torch.testing.assert_close(scores.total.sum(1), alone(base, parts, values))


def test_direct_effects_are_the_differences_read_off(toys) -> None:
    base, parts, values, _ = toys
    own = recorded_run(base, parts, IDS)
    direct = direct_scores(parts, own, values, lambda: metric_of(base)[0], 1)
    torch.testing.assert_close(direct[-1], (values.mlps[1] - own.mlps[1])[-1] @ READ)
    head = [(each.inputs[1][-1, :3] @ each.weights[1][:, :3].T) for each in (values, own)]
    biases = (values.biases[1] - own.biases[1]) / HEADS  # pyright: ignore[reportOptionalOperand]
    place = parts.place(1)
    torch.testing.assert_close(direct[place], (head[0] - head[1] + biases) @ READ)


def test_integrals_are_complete_and_edges_add_up_to_their_node(toys) -> None:
    base, parts, values, difference = toys
    scores = node_scores(parts, values, lambda: metric_of(base)[0], 4, edges=True)
    assert float(scores.total.sum()) == pytest.approx(difference, rel=1e-10)
    assert scores.edges is not None
    torch.testing.assert_close(scores.edges.sum(1), scores.total.sum(1))
    assert not scores.edges[~upstream(parts)].any()


def test_weights_on_a_network_linear_in_each_are_complete_and_one_point_is_the_first_order(toys) -> None:
    base, _, _, difference = toys
    weights, moved = dict(base.named_parameters()), dict(Toy(1).named_parameters())

    def metric(put: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(base, put, (IDS,))[0, -1] @ READ

    scores = weight_scores(weights, moved, metric, 6)
    assert sum(scores.values()) == pytest.approx(difference, rel=1e-10)
    first = weight_scores(weights, moved, metric, 1)
    for name in weights:  # every weight alone is linear in the metric
        assert first[name] == pytest.approx(float(metric({name: moved[name]}) - metric({})), rel=1e-9, abs=1e-12)


def test_a_rule_of_n_points_integrates_the_degree_2n_minus_1() -> None:
    for points in (2, 5, 32):
        rule = gauss_legendre(points)
        assert sum(w * x ** (2 * points - 1) for x, w in rule) == pytest.approx(1 / (2 * points), rel=1e-9)
        assert sum(w for _, w in rule) == pytest.approx(1)
    assert gauss_legendre(1) == [(0.0, 1.0)]


def test_the_smallest_set_and_chance() -> None:
    worth = [0.1, 0.5, 0.3, 0.1]

    def effect(sets: Any) -> list[float]:
        return [2 * sum(worth[each] for each in chosen) for chosen in sets]

    found = smallest_set([1, 2, 0], 4, effect, 2.0, 0.7, draws=5)
    assert (found.size, found.reached, len(found.random)) == (2, True, 5)
    assert found.recovered == pytest.approx(0.8) and found.curve == pytest.approx((0.5, 0.8, 0.9))
    assert not smallest_set([0, 3], 4, effect, 2.0, 0.7, draws=0).reached
    assert smallest_set([0], 4, effect, 0.0, 0.7, draws=1).size == 0


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gpt2", "gpt_neox"])
def test_integrals_over_a_real_architecture(folder_of, family) -> None:
    """32 points are complete, all nodes patched are the other model, edges add up, also through Gemma's norms."""
    from foretune.tasks.loading import ModelSettings, load_model

    base = load_model(folder_of(family), ModelSettings(name_or_path=str(folder_of(family)), device="cpu"))
    other = copy.deepcopy(base.model)
    generator = torch.Generator().manual_seed(3)
    for name, weight in other.named_parameters():
        if weight.ndim == 2 and ("attn" in name or "attention" in name or "mlp" in name):
            weight.data += 0.05 * torch.randn(weight.shape, generator=generator)
    ids = torch.tensor([[10, 20, 30, 40, 50, 60]])
    parts = residual_parts(base)
    values = recorded_run(other, residual_parts(dataclasses.replace(base, model=other)), ids)
    assert missing(parts, recorded_run(base.model, parts, ids)) < 1e-6

    def metric(model: Any, rows: int = 1) -> torch.Tensor:
        logits = model(ids.expand(rows, -1)).logits[:, -1]
        return logits[:, 7] - logits[:, 9]

    with torch.no_grad():
        before, after = float(metric(base.model)), float(metric(other))
    gates = torch.stack([torch.ones(len(parts.nodes())), torch.zeros(len(parts.nodes()))])
    with torch.no_grad(), patched(parts, values, gates):
        everything, nothing = metric(base.model, 2).tolist()
    assert everything == pytest.approx(after, abs=1e-4) and nothing == pytest.approx(before, abs=1e-5)
    scores = node_scores(parts, values, lambda: metric(base.model)[0], 32)
    assert float(scores.total.sum()) == pytest.approx(after - before, rel=2e-3, abs=1e-4)
    direct = direct_scores(parts, recorded_run(base.model, parts, ids), values, lambda: metric(base.model)[0], 32)
    assert float(direct.sum()) == pytest.approx(after - before, rel=2e-3, abs=1e-4)
    few = node_scores(parts, values, lambda: metric(base.model)[0], 2, edges=True)
    assert few.edges is not None
    torch.testing.assert_close(few.edges.sum(1), few.total.sum(1), atol=1e-4, rtol=1e-3)
