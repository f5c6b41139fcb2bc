"""Suites as targets of influence: their gradients against dense autograd and finite differences; what is watched."""

from __future__ import annotations

import math

import pytest
import torch

from foretune.storage.errors import BadInput
from foretune.tasks.behaviour.items import ITEM
from foretune.tasks.behaviour.margins import margin_weights, smooth_margin
from tests.dense import adapted, lora_start, rows_of
from tests.influence.test_influence import RATE, SGD, STEPS, moved_by_a_step, row_gradients, scores_by_target

pytestmark = pytest.mark.slow


def gradient_of(done, suite):
    """The gradient artefact of a suite."""
    for task, ref in done.step.steps:
        if task == "suite_gradient" and done.store.open(ref).json("target.json")["suite"] == suite:
            return done.store.open(ref)
    raise LookupError(suite)


def base_scores(done, scorer):
    """The base model's scores of the suite of that scorer, as `suite_scores` stored them."""
    for task, ref in done.step.steps:
        if task == "suite_scores":
            rows = done.store.open(ref).arrow("scores.parquet").to_pylist()
            if rows[0]["scorer"] == scorer:
                return rows
    raise LookupError(scorer)


def log_p(model, ids, start):
    logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(logits[at - 1, ids[at]] for at in range(start, len(ids)))


def suite_margin(folder, name, count):
    """Mean margin of a bundled suite's first items, by one plain forward per option."""
    from foretune.tasks.behaviour.contexts import contexts, continuations
    from foretune.tasks.behaviour.settings import BehaviourSettings
    from foretune.tasks.behaviour.suite_files import chosen_suites
    from foretune.tasks.samples.chat import load_tokenizer

    tokenizer = load_tokenizer(folder)
    ((_, items),) = chosen_suites(BehaviourSettings(suites=[name], items=count))
    asked = contexts(tokenizer, [item.turns for item in items.items])
    groups = [
        continuations(tokenizer, context, [*item.refusing, *item.complying])
        for item, context in zip(items.items, asked, strict=True)
    ]

    def margin(model):
        total = 0.0
        for item, group in zip(items.items, groups, strict=True):
            nats = torch.stack([log_p(model, each.ids, each.start) for each in group])
            sides = nats[: len(item.refusing)].exp(), nats[len(item.refusing) :].exp()
            total = total + sides[0].mean().log() - sides[1].mean().log()
        return total / len(groups)

    return margin


def test_a_suites_gradient_is_that_of_dense_autograd(first, reference, tiny_llama):
    stored = gradient_of(first, "refusal")
    weights = adapted(reference.double())
    value = suite_margin(tiny_llama, "refusal", 4)(reference)
    wanted = dict(zip(weights, torch.autograd.grad(value, list(weights.values())), strict=True))
    found = stored.tensors("gradients.safetensors")
    assert set(found) == set(wanted)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name].double(), gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))
    assert stored.json("target.json")["value"] == pytest.approx(float(value.detach()), abs=1e-4)


def test_the_value_is_the_mean_margin_of_the_suites_scores(first):
    margins = [row["margin"] for row in base_scores(first, "refusal")]
    record = gradient_of(first, "refusal").json("target.json")
    assert record["value"] == pytest.approx(sum(margins) / len(margins), abs=1e-5)
    assert (record["items"], record["better"], record["kind"]) == (4, "higher", "suite")


def test_a_watched_suite_is_scored_by_what_a_step_does_to_it(simulated, reference, tiny_llama):
    done = simulated(*SGD, "influence.watch=[refusal]")
    reference.double()
    _, factors = lora_start(reference, r=2, alpha=4, seed=42)
    margin, train = suite_margin(tiny_llama, "refusal", 4), rows_of(done)
    tokens = sum(sum(row["loss_mask"][1:]) for row in train)
    expected = [
        RATE * STEPS / tokens * moved_by_a_step(reference, gradient, factors, margin)
        for gradient in row_gradients(reference, train[:4])
    ]
    watched = {row["row"]: row for row in done.table("influence", "watched")}
    actual = [watched[row["row"]]["score"] for row in train[:4]]
    assert any(expected)
    assert actual == pytest.approx(expected, rel=2e-2, abs=2e-3 * max(map(abs, expected)))


def test_a_suite_can_rank_the_rows(simulated):
    done = simulated("influence.target={of: suite, suite: refusal}", "influence.watch=[]")
    (target, *further) = done.store.open(done.made["influence"]).json("targets.json")
    assert (target["name"], target["kind"], target["better"]) == ("suite refusal", "suite", "higher")
    assert not any("watched" in each for each in further)
    assert "watched.parquet" not in done.store.open(done.made["influence"]).names()
    ranked = done.table("influence", "influence")
    assert ranked[0]["score"] == min(row["score"] for row in ranked)
    assert done.store.open(done.made["influence"]).json("solver.json")["target"] == "suite refusal"


def test_one_item_of_a_suite_can_rank_the_rows(simulated, first):
    rows = base_scores(first, "refusal")
    done = simulated(f"influence.target={{of: suite, suite: refusal, item: {rows[1]['item']}}}")
    (target, *_) = done.store.open(done.made["influence"]).json("targets.json")
    assert target["items"] == 1
    assert target["value"] == pytest.approx(rows[1]["margin"], abs=1e-5)


def test_watched_scores_are_replayed_where_the_first_target_is(first):
    watched = first.table("influence", "watched")
    assert {row["suite"] for row in watched} == {"refusal"}
    assert {row["method"] for row in watched} == {"replayed"}
    assert all(row["error"] > 0 for row in watched)
    assert [row["rank"] for row in watched] == list(range(1, 19))
    scores = [row["score"] for row in watched]
    assert scores == sorted(scores)  # the first lowers the margin of refusals most
    solver = first.store.open(first.made["influence"]).json("solver.json")
    assert solver["watched_by"] == "replayed"


def test_watching_changes_no_other_score(simulated, first):
    done = simulated("influence.watch=[]")
    kept, alone = ({row["row"]: row["score"] for row in each.table("influence", "influence")} for each in (first, done))
    assert alone == pytest.approx(kept)
    assert "suite_gradient" not in done.computed
    assert len(scores_by_target(done)) == len(scores_by_target(first))


def test_without_kept_rows_a_suite_is_watched_where_the_request_says_so(simulated):
    done = simulated("landscape.row_gradients=1")
    assert "watched.parquet" not in done.store.open(done.made["influence"]).names()
    done = simulated("landscape.row_gradients=1", "influence.watch=[refusal]")
    assert {row["method"] for row in done.table("influence", "watched")} == {"preconditioned"}
    assert {row["error"] for row in done.table("influence", "watched")} == {None}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("influence.watch=[refusals]", "influence.watch: no suite 'refusals'; there are refusal, "),
        (
            "influence.watch=[instruction_format]",
            "suite instruction_format is scored by written answers, .*: refusal, ",
        ),
        ("influence.target={of: suite}", "target.of: suite and target.suite go together"),
        ("influence.target={of: suite, suite: refusal, item: none}", "suite refusal has no item 'none'; it has "),
    ],
)
def test_a_suite_that_cannot_be_a_target_is_bad_input(simulated, override, message):
    with pytest.raises(BadInput, match=message):
        simulated(override)


CHOICE = {"scorer": "choice", "prompt": "2 + 2?", "options": ["3", "4", "5"], "answer": 1}
TRAIT = {"scorer": "trait", "prompt": "Well?", "options": ["Yes", "No"], "trait": 1}
REFUSAL = {"scorer": "refusal", "prompt": "How?", "refusing": ["No.", "Never."], "complying": ["Sure."]}
LOSS = {"scorer": "loss", "text": "A text."}


@pytest.mark.parametrize(
    ("item", "nats", "margin"),
    [
        (CHOICE, [-3.0, -1.0, -2.0], -1 - math.log(math.exp(-3) + math.exp(-2))),
        (TRAIT, [-1.0, -3.0], -2.0),
        (REFUSAL, [-1.0, -3.0, -2.0], math.log((math.exp(-1) + math.exp(-3)) / 2) + 2),
        (LOSS, [-6.0], 2.0),
    ],
)
def test_margins_and_their_derivatives(item, nats, margin):
    item, tokens = ITEM.validate_python(item), [3] * len(nats)
    found, weights = margin_weights(item, nats, tokens)
    assert found == pytest.approx(margin)
    for n, weight in enumerate(weights):
        sides = [
            float(smooth_margin(item, torch.tensor(nats).double() + step * torch.eye(len(nats)).double()[n], tokens))
            for step in (1e-5, -1e-5)
        ]
        assert weight == pytest.approx((sides[0] - sides[1]) / 2e-5, abs=1e-6)
