"""Influence against the same quantities worked out another way: dense autograd, and values after a real small step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from foretune.storage.errors import BadInput
from tests.dag import Simulated
from tests.dense import EXACT, adapted, label_losses, lora_start, role_rows, rows_of

pytestmark = pytest.mark.slow

SGD = ("training.optimizer=sgd", "training.lr_scheduler_type=constant", "landscape.gradient_dtype=float32")
RATE, STEPS, SCALE = 1e-3, 10, 2.0  # of the tiny request: 18 rows in batches of 4, 2 epochs; alpha / r


def trained_tokens(row: dict[str, Any]) -> int:
    return sum(row["loss_mask"][1:])


def row_gradients(model: Any, rows: list[dict[str, Any]]) -> list[dict[str, torch.Tensor]]:
    """Gradient of every row's summed loss in the full weights."""
    weights = adapted(model)
    losses = (label_losses(model, row["input_ids"], row["loss_mask"]).sum() for row in rows)
    return [dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True)) for loss in losses]


def in_adapter(gradient: dict[str, torch.Tensor], factors: dict[str, torch.Tensor]) -> torch.Tensor:
    """A gradient in the coordinates B of LoRA at its start, as one vector."""
    return torch.cat([(SCALE * gradient[name] @ a.T).flatten() for name, a in factors.items()])


def scores_by_target(done: Simulated) -> dict[tuple[str, int], float]:
    return {(row["target"], row["row"]): row["score"] for row in done.table("influence", "targets")}


def scores_of(done: Simulated, column: str = "score") -> dict[str, float]:
    return {row["sample_id"]: row[column] for row in done.table("influence", "influence")}


def test_under_sgd_every_target_is_a_dot_product_of_gradients(simulated, reference):
    done = simulated(*EXACT, *SGD)
    _, factors = lora_start(reference, r=2, alpha=4, seed=42)
    train, held = rows_of(done), role_rows(done, "heldout")
    tokens = sum(map(trained_tokens, train))
    ours, theirs = ([in_adapter(g, factors) for g in row_gradients(reference, rows)] for rows in (train, held))
    expected = {
        (f"held-out row {query['row']}", row["row"]): -RATE * STEPS / tokens * float(g @ t) / trained_tokens(query)
        for query, t in zip(held, theirs, strict=True)
        for row, g in zip(train, ours, strict=True)
    }
    found = scores_by_target(done)
    size = max(map(abs, expected.values()))
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-3, abs=1e-4 * size)
    weights = {f"held-out row {query['row']}": trained_tokens(query) for query in held}
    for row in train:  # the mean held-out loss weighs its rows by their tokens
        mean = sum(found[name, row["row"]] * weight for name, weight in weights.items()) / sum(weights.values())
        assert found["held-out loss", row["row"]] == pytest.approx(mean, rel=1e-3, abs=1e-4 * size)


def test_the_nearest_rows_are_those_that_a_sample_moves_most(simulated):
    done = simulated(*EXACT)
    found = scores_by_target(done)
    for row in done.table("influence", "influence"):
        apart = {n: s for (n, r), s in found.items() if r == row["row"] and n.startswith("held-out row")}
        largest = sorted(apart, key=lambda name: -abs(apart[name]))[:3]
        assert [f"held-out row {number}" for number in row["nearest_rows"]] == largest
        assert row["nearest_scores"] == [apart[name] for name in largest]


def test_stored_rows_score_as_a_pass_over_the_model_does(simulated):
    kept, passed = simulated(*EXACT), simulated(*EXACT, "landscape.row_gradients=1")
    assert passed.computed.count("influence_shard") == 4
    assert "influence_replays" in kept.computed
    assert "influence_replays" not in passed.computed
    assert scores_of(passed, "lissa_score") == pytest.approx(scores_of(kept, "lissa_score"), rel=1e-4, abs=1e-9)
    assert {row["method"] for row in kept.table("influence", "influence")} == {"replayed"}
    assert {row["method"] for row in passed.table("influence", "influence")} == {"preconditioned"}


def test_replayed_scores_follow_the_peak_learning_rate(simulated):
    slow, fast = simulated("training.learning_rate=1e-4"), simulated("training.learning_rate=2e-4")
    assert "influence_replays" not in fast.computed
    doubled = {sample_id: 2 * score for sample_id, score in scores_of(slow, "replayed_score").items()}
    assert scores_of(fast, "replayed_score") == pytest.approx(doubled)


@pytest.fixture
def grouped(tiny_request: Path) -> Path:
    path = Path(yaml.safe_load(tiny_request.read_text())["dataset"]["heldout"]["path"])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(r | {"team": "day" if n % 2 else "night"}) + "\n" for n, r in enumerate(rows)))
    return path


def test_a_group_weighs_its_rows_by_their_tokens(simulated, grouped):
    done = simulated(*SGD, "dataset.group_column=team")
    found, held = scores_by_target(done), role_rows(done, "heldout")
    night = [row for row in held if row["row"] % 2 == 0]
    assert {row["group"] for row in night} == {"night"}
    for row in rows_of(done):
        parts = [found[f"held-out row {q['row']}", row["row"]] * trained_tokens(q) for q in night]
        mean = sum(parts) / sum(map(trained_tokens, night))
        assert found["night", row["row"]] == pytest.approx(mean, rel=1e-4, abs=1e-9)


def test_a_group_column_that_is_not_there_is_bad_input(simulated):
    with pytest.raises(BadInput, match="dataset.group_column: a held-out row has no 'team'; its columns are"):
        simulated("dataset.group_column=team")


def moved_by_a_step(reference: Any, gradient: dict[str, torch.Tensor], factors: dict[str, torch.Tensor], value: Any):
    """Central difference of `value(model)` along the SGD step of LoRA's B that one row's gradient asks for."""
    step, values = 1e-4, []
    weights = adapted(reference)
    for sign in (1, -1):
        with torch.no_grad():
            for name, a in factors.items():
                weights[name] -= sign * step * SCALE**2 * (gradient[name] @ a.T) @ a
            values.append(float(value(reference)))
            for name, a in factors.items():
                weights[name] += sign * step * SCALE**2 * (gradient[name] @ a.T) @ a
    return (values[0] - values[1]) / (2 * step)


def test_a_margin_is_scored_by_what_a_step_does_to_it(simulated, reference):
    reference.double()
    done = simulated(*SGD, "influence.target.of=margin")
    pairs = role_rows(done, "preferences")

    def margin(model: Any) -> float:
        def log_p(ids: list[int], mask: list[bool]) -> float:
            return -float(label_losses(model, ids, mask).sum())

        sides = [log_p(p["input_ids"], p["loss_mask"]) - log_p(p["rejected_ids"], p["rejected_mask"]) for p in pairs]
        return sum(sides) / len(sides)

    assert_scores_are_steps(done, reference, "preference margin", margin)
    ranked = done.table("influence", "influence")
    assert ranked[0]["score"] == min(row["score"] for row in ranked)  # a higher margin is better
    assert {row["verdict"] for row in ranked if row["score"] > 0} <= {"helps", "neutral"}
    assert {row["verdict"] for row in ranked if row["score"] < 0} <= {"harms", "neutral"}


def test_a_concept_is_scored_by_what_a_step_does_to_it(simulated, reference, tiny_sae):
    from sae_lens import SAE

    done = simulated(*SGD, "influence.target={of: feature, feature: 3}", "prediction.evaluation_rows=100")
    reference.double()
    held, sae = role_rows(done, "heldout"), SAE.load_from_disk(tiny_sae, device="cpu").double()

    def activation(model: Any) -> float:
        total, tokens = 0.0, 0
        for row in held:
            hidden = model(torch.tensor([row["input_ids"]]), output_hidden_states=True).hidden_states[1][0]
            chosen = hidden[torch.tensor([False, *row["loss_mask"][1:]])]
            total, tokens = total + float(sae.encode(chosen)[:, 3].sum()), tokens + len(chosen)
        return total / tokens

    target = done.store.open(done.made["influence"]).json("targets.json")[0]
    assert (target["kind"], target["feature"], target["better"]) == ("feature", 3, None)
    assert_scores_are_steps(done, reference, target["name"], activation)
    verdicts = {row["verdict"] for row in done.table("influence", "influence")}
    assert verdicts <= {"raises", "lowers", "neutral"}


def assert_scores_are_steps(done: Simulated, reference: Any, target: str, value: Any) -> None:
    _, factors = lora_start(reference, r=2, alpha=4, seed=42)
    train, found = rows_of(done), scores_by_target(done)
    tokens = sum(map(trained_tokens, train))
    expected = [
        RATE * STEPS / tokens * moved_by_a_step(reference, gradient, factors, value)
        for gradient in row_gradients(reference, train[:4])
    ]
    actual = [found[target, row["row"]] for row in train[:4]]
    assert any(expected)
    assert actual == pytest.approx(expected, rel=2e-2, abs=2e-3 * max(map(abs, expected)))


def test_token_shares_add_up_to_the_sample(simulated):
    done = simulated(*EXACT, "influence.tokens_of=5", "influence.method=preconditioned")
    row = next(row for row in rows_of(done) if row["row"] == 5)
    tokens = done.table("influence_tokens", "tokens")
    assert [token["label"] for token in tokens] == row["loss_mask"]
    assert all(token["derivative"] == 0.0 for token in tokens if not token["label"])
    assert sum(token["share"] for token in tokens) == pytest.approx(1.0)
    ranked = {r["row"]: r for r in done.table("influence", "influence")}
    counts = sum(map(trained_tokens, rows_of(done)))
    rate = RATE * (STEPS + 1) / 2  # of a linear schedule
    total = -rate / counts * sum(token["derivative"] for token in tokens)
    assert ranked[5]["preconditioned_score"] == pytest.approx(total, rel=1e-3)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("influence.tokens_of=99", "influence.tokens_of is 99: no training row of that number"),
        ("influence.target={of: feature, feature: 64}", "the SAE has features 0 to 63"),
        ("influence.target={of: feature, feature: nowhere}", "no label holds 'nowhere'; the nearest is"),
        ("influence.target={of: feature}", "target.of: feature and target.feature go together"),
    ],
)
def test_a_target_that_is_not_there_is_bad_input(simulated, override, message):
    with pytest.raises(BadInput, match=message):
        simulated(override)


def test_targets_without_their_data_are_bad_input(simulated):
    with pytest.raises(BadInput, match="target.of is margin, but there are no pairs; give dataset.preferences"):
        simulated("influence.target.of=margin", "dataset.preferences=null")
    with pytest.raises(BadInput, match="target.of is feature, but there is no SAE; give sae.path"):
        simulated("influence.target={of: feature, feature: 1}", "sae=null")


def solver_of(done: Simulated) -> dict[str, Any]:
    return done.store.open(done.made["influence"]).json("solver.json")


def test_a_solve_that_nothing_reads_is_not_made_and_moves_no_score(simulated, first):
    done = simulated("influence.solver.when=ranking")
    assert "influence_solve" not in {task for task, _ in done.step.steps}
    assert done.made["prediction"].key == first.made["prediction"].key
    for name in ("influence", "targets", "watched"):
        found, asked = ([row["score"] for row in each.table("influence", name)] for each in (done, first))
        assert found == pytest.approx(asked, rel=1e-6, abs=1e-6 * max(map(abs, asked)))
    without = {column for column in first.table("influence", "influence")[0] if column != "lissa_score"}
    assert set(done.table("influence", "influence")[0]) == without
    assert "lissa_score" in first.table("influence", "influence")[0]
    assert "residuals" not in solver_of(done) and solver_of(done)["ranked_by"] == "replayed"
    assert "lissa_residual" in first.found.summary and "lissa_residual" not in done.found.summary
    page = done.store.open(done.made["report"]).text("report.html")
    assert page.count("solve was not asked for") == 1
    ranking = simulated("influence.solver.when=ranking", "influence.method=lissa")
    assert solver_of(ranking)["residuals"] == solver_of(first)["residuals"]


def test_the_seeds_preset_keeps_its_scale(simulated):
    assert solver_of(simulated(*EXACT, "influence.solver.preset=seed"))["scale"] == 25.0


def test_the_tuned_solve_converges_within_the_iterations_and_agrees_with_conjugate_gradients(simulated):
    solver = solver_of(
        simulated(*EXACT, "influence.solver={when: always, preset: tuned, check: true}", "curvature.rows=4")
    )
    assert solver["status"] == "converged" or solver["residuals"][-1] < 0.1
    assert solver["iterations"] <= solver["budget"] == 10
    assert solver["curvature_rows_needed"] >= 1
    assert solver["conjugate_gradient_cosine"] > 0.99


def test_a_preconditioned_solve_is_another_solve_of_the_same_target(simulated):
    plain, tuned = (
        simulated(*EXACT, f"influence.solver={{when: always, preconditioner: {p}}}") for p in ("none", "adam")
    )
    assert solver_of(tuned)["preconditioner"] == "adam"
    a, b = (torch.tensor([s for _, s in sorted(scores_of(d, "lissa_score").items())]) for d in (plain, tuned))
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.5
    assert not torch.allclose(a, b, rtol=1e-3)
