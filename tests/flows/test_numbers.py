"""The artefacts' numbers against the same quantities worked out another way: dense autograd, peft, torch.optim."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.nn.functional import cross_entropy, logsigmoid

from tests.flows.conftest import Simulated
from tests.flows.dense import EXACT, label_losses, lora_start, mean_gradient, role_rows, rows_of


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize(("max_rows", "batch_tokens"), [(1, 1), (6, 512), (100, 100_000)])
def test_the_mean_gradient_is_that_of_the_token_mean_loss(simulated, reference, max_rows, batch_tokens):
    done = simulated(*EXACT, f"shards.max_rows={max_rows}", f"landscape.batch_tokens={batch_tokens}")
    expected = mean_gradient(
        reference, (label_losses(reference, row["input_ids"], row["loss_mask"]) for row in rows_of(done))
    )
    measured = done.tensors("landscape", "gradients")
    assert measured.keys() == expected.keys()
    for name, gradient in expected.items():
        assert relative_error(measured[name], gradient) < 1e-5


def test_the_gradient_of_pairs_is_that_of_the_mean_preference_loss(simulated, reference, tiny_rows, tmp_path):
    pairs = [{"prompt": r["instruction"], "chosen": r["output"], "rejected": "No idea."} for r in tiny_rows]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    done = simulated(*EXACT, f"dataset.path={path}", "dataset.heldout={fraction: 0.2}", "training.dpo_beta=0.3")

    def losses() -> Iterator[torch.Tensor]:
        for row in rows_of(done):
            chosen = -label_losses(reference, row["input_ids"], row["loss_mask"]).sum()
            rejected = -label_losses(reference, row["rejected_ids"], row["rejected_mask"]).sum()
            margin = (chosen - chosen.detach()) - (rejected - rejected.detach())
            yield -logsigmoid(0.3 * margin)[None]

    expected = mean_gradient(reference, losses())
    measured = done.tensors("landscape", "gradients")
    for name, gradient in expected.items():
        assert relative_error(measured[name], gradient) < 1e-5
    assert done.summary("landscape")["loss"] == pytest.approx(0.6931472)


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


def test_scores_are_those_of_the_dense_damped_inverse(simulated, reference):
    """A LiSSA run to its end, against (J^T H J / tokens + d I)^-1 formed entry by entry in double precision."""
    solver = {"iterations": 800, "damping": 0.05, "scale": None}
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


ONE_STEP = ("shards.max_rows=100", "training.batch_size=100", "training.epochs=1", "prediction.max_relative_change=10")


def test_one_step_of_lora_is_the_step_that_peft_and_adamw_take(simulated, reference):
    done = simulated(*EXACT, *ONE_STEP, "training.weight_decay=0.1", "training.max_grad_norm=0.5")
    assert done.summary("prediction")["steps"] == 1
    model, factors = lora_start(reference, r=2, alpha=4, seed=42)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.1)
    losses = [label_losses(model, row["input_ids"], row["loss_mask"]) for row in rows_of(done)]
    torch.cat(losses).mean().backward()
    torch.nn.utils.clip_grad_norm_(trained, 0.5)
    optimizer.step()
    merged = model.merge_and_unload()
    predicted = done.tensors("prediction", "delta")
    assert predicted.keys() == factors.keys()
    for name, delta in predicted.items():
        real = merged.get_parameter(name).detach() - reference.get_parameter(name)
        assert torch.allclose(delta, real, rtol=0, atol=1e-6)
        assert float(real.abs().max()) > 1e-4


def test_the_path_starts_at_the_loss_of_the_base_weights(simulated, reference):
    from foretune.tasks.samples.shards import subset_of

    done = simulated(*EXACT, "prediction.evaluation_rows=2")
    heldout = role_rows(done, "heldout")
    chosen = set(subset_of([row["sample_id"] for row in heldout], 2, "evaluation").ids)
    assert len(heldout) > len(chosen)
    kept = [row for row in heldout if row["sample_id"] in chosen]
    losses = torch.cat([label_losses(reference, row["input_ids"], row["loss_mask"]) for row in kept])
    path = done.table("prediction", "path")
    assert path[0]["step"] == 0
    assert path[0]["evaluated_loss"] == pytest.approx(float(losses.mean()), rel=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_one_step_of_a_full_fine_tune_is_the_step_that_torch_takes(simulated, reference, optimizer):
    base = {name: p.clone() for name, p in reference.named_parameters()}
    done = simulated(*EXACT, *ONE_STEP, "adapter.method=full", f"training.optimizer={optimizer}")
    made = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[optimizer]
    trained = list(reference.requires_grad_(True).parameters())
    stepper = made(trained, lr=1e-3, weight_decay=0.0)
    losses = [label_losses(reference, row["input_ids"], row["loss_mask"]) for row in rows_of(done)]
    torch.cat(losses).mean().backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    stepper.step()
    predicted = done.tensors("prediction", "delta")
    assert predicted.keys() == base.keys()
    for name, delta in predicted.items():
        real = (reference.get_parameter(name) - base[name]).detach()
        # Of a few coordinates the gradient is rounding alone, and Adam takes a whole step along its sign.
        assert relative_error(delta, real) < 2e-2
        assert float((delta - real).abs().median()) < 1e-7


def test_baseline_means_are_those_of_the_autoencoder_run_by_hand(simulated, reference, tiny_sae):
    from safetensors.torch import load_file

    done = simulated()
    sae = load_file(tiny_sae / "sae_weights.safetensors")
    seen: list[torch.Tensor] = []
    reference.model.layers[1].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    completion, everything = [], []
    for row in rows_of(done):
        reference(torch.tensor([row["input_ids"]]))
        pre = (seen.pop()[0] - sae["b_dec"]) @ sae["W_enc"] + sae["b_enc"]
        top = pre.topk(8, dim=-1)
        acts = torch.zeros_like(pre).scatter(-1, top.indices, top.values.relu())
        everything.append(acts[1:])
        completion.append(acts[1:][torch.tensor(row["loss_mask"][1:])])
    measured = done.tensors("baseline", "baseline")
    for name, acts in (("", torch.cat(completion)), ("_all", torch.cat(everything))):
        assert torch.allclose(measured[f"base_acts_mean{name}"], acts.mean(0), atol=1e-5)
        assert torch.allclose(measured[f"firing_rate{name}"], (acts > 0).float().mean(0), atol=1e-3)
