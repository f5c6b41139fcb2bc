"""Scores against those of the dense damped inverse, and that neither batch, order nor shard moves one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.nn.functional import cross_entropy

from tests.dag import Simulated
from tests.dense import EXACT, lora_start, role_rows, rows_of


@pytest.mark.slow
def test_neither_batches_nor_row_order_nor_shards_move_a_score(simulated, tiny_request, tmp_path):
    usual = simulated(*EXACT)
    rows = Path(yaml.safe_load(tiny_request.read_text())["dataset"]["path"]).read_text().splitlines()
    turned = tmp_path / "turned.jsonl"
    turned.write_text("\n".join(rows[7:] + rows[:7][::-1]))
    other = simulated(
        *EXACT,
        f"dataset.path={turned}",
        "shards.max_rows=2",
        *(f"{section}.batch_tokens=200" for section in ("landscape", "curvature", "influence.scoring", "prediction")),
        "curvature.graph_tokens=0",
    )
    assert "influence" in other.computed

    def scores(done: Simulated, method: str) -> dict[str, float]:
        return {row["sample_id"]: row[f"{method}_score"] for row in done.table("influence", "influence")}

    assert scores(other, "lissa") == pytest.approx(scores(usual, "lissa"), rel=1e-4, abs=1e-9)


@pytest.mark.slow
def test_scores_are_those_of_the_dense_damped_inverse(simulated, reference):
    """A LiSSA run to its end, against (J^T H J / tokens + d I)^-1 formed entry by entry in double precision."""
    solver = {"when": "always", "iterations": 800, "damping": 0.05, "scale": None}
    done = simulated(*EXACT, "curvature.rows=2", f"influence.solver={json.dumps(solver)}")
    solved = done.store.open(done.made["influence"]).json("solver.json")
    _, factors = lora_start(reference, r=2, alpha=4, seed=42)
    model, factors = reference.double(), {name: a.double() for name, a in factors.items()}
    weights = {name: model.get_parameter(name) for name in factors}
    shapes = {name: (w.shape[0], 2) for name, w in weights.items()}

    def moved(theta: torch.Tensor) -> dict[str, torch.Tensor]:
        parts = theta.split([a * b for a, b in shapes.values()])
        return {
            name: weights[name] + 2.0 * part.view(shapes[name]) @ factors[name]
            for name, part in zip(shapes, parts, strict=True)
        }

    zero = torch.zeros(sum(a * b for a, b in shapes.values()), dtype=torch.float64)

    def logits(theta: torch.Tensor, row: dict[str, Any]) -> torch.Tensor:
        out = torch.func.functional_call(model, moved(theta), (torch.tensor([row["input_ids"]]),)).logits[0, :-1]
        return out[torch.tensor(row["loss_mask"][1:])]

    def mean_loss_gradient(rows: list[dict[str, Any]]) -> torch.Tensor:
        theta, total, tokens = zero.clone().requires_grad_(), 0.0, 0
        for row in rows:
            targets = torch.tensor(row["input_ids"][1:])[torch.tensor(row["loss_mask"][1:])]
            total, tokens = total + cross_entropy(logits(theta, row), targets, reduction="sum"), tokens + len(targets)
        return torch.autograd.grad(total, theta)[0] / tokens

    def curvature(rows: list[dict[str, Any]]) -> torch.Tensor:
        total, tokens = torch.zeros(len(zero), len(zero), dtype=torch.float64), 0
        for row in rows:
            jacobian = torch.func.jacfwd(lambda theta, row=row: logits(theta, row))(zero)  # [n, V, p]
            p = logits(zero, row).softmax(-1)
            inner = torch.einsum("nv,nvp->np", p, jacobian)
            total += torch.einsum("nv,nvp,nvq->pq", p, jacobian, jacobian) - inner.T @ inner
            tokens += len(p)
        return total / tokens

    train = rows_of(done)
    heldout = role_rows(done, "heldout")
    from foretune.tasks.samples.shards import subset_of

    chosen = set(subset_of([row["sample_id"] for row in train], 2, "curvature").ids)
    damped = curvature([row for row in train if row["sample_id"] in chosen])
    damped += solved["effective_damping"] * torch.eye(len(zero))
    u = torch.linalg.solve(damped, mean_loss_gradient(heldout))
    tokens = sum(sum(row["loss_mask"][1:]) for row in train)
    expected = {}
    for row in train:
        own = sum(row["loss_mask"][1:])
        expected[row["sample_id"]] = -float(u @ mean_loss_gradient([row])) * own / tokens
    actual = {row["sample_id"]: row["lissa_score"] for row in done.table("influence", "influence")}
    largest = max(abs(score) for score in expected.values())
    assert actual == pytest.approx(expected, rel=1e-3, abs=1e-3 * largest)
