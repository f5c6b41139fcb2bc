"""A budget: what it pays for, that more of it keeps what less has made, and that every row is still told of."""

from __future__ import annotations

import dataclasses
import statistics

import pytest

from foretune.flows.dag.causes import replays_are_dear
from foretune.flows.dag.effort import (
    ANCHORS,
    ASKED,
    BESIDE_ROWS,
    DEARER,
    FEWEST_PAIRS,
    FEWEST_ROWS,
    GRADIENT,
    LONG_RUN,
    OF_PAIRS,
    PADDED,
    PAIRED,
    effort_of,
)
from foretune.flows.dag.fixed import ASKED_FEWEST, asked_tokens
from foretune.flows.dag.influence import _replay_settings
from foretune.flows.effort import EffortSettings
from foretune.flows.request import load_request
from foretune.tasks.behaviour.answer_settings import AnswerSettings
from foretune.tasks.behaviour.settings import AlongPathSettings, BehaviourSettings
from foretune.tasks.inputs.field import per_row_gradients
from foretune.tasks.landscape.landscape import LandscapeSettings
from foretune.tasks.loading.autocast import AUTOCAST
from foretune.tasks.loading.footprint import Footprint
from foretune.tasks.samples.table import SampleIndex
from tests.flows.test_matrix import jsonl, pairs_of
from tests.samples.test_role_rows import index_of_rows


@pytest.fixture
def request_with(tiny_request):
    def made(**effort):
        asked = load_request(str(tiny_request))
        return asked.model_copy(update={"effort": EffortSettings(**effort)})

    return made


FEW = (
    "effort.autocast=never",
    "shards.max_rows=3",
    "dataset.preferences=null",
    "prediction.evaluation_rows=1",
    "prediction.path_points=1",
    "prediction.evaluations=1",
    "behaviour.enabled=false",
    "sae=null",
    "residual_change.when=never",
    "influence.solver.when=ranking",
    "circuits.prompts=0",
    "answers.rows=0",
)
"""Blocks of few rows, and next to nothing for the held-out rows along the path: of 18 rows these would be the most.
What no budget changes is left out."""


def spent(effort, train: SampleIndex) -> float:
    """Tokens through the model that grow with the rows, a backward counted twice."""
    tokens, rows = sum(train.tokens), len(train.trained_ids)
    share = 1.0 if effort.train_rows is None else effort.train_rows / rows
    once = 1 if share * rows <= LandscapeSettings().row_gradients else 2  # else rows are scored by a pass of their own
    gradients, price = tokens * share * 3 * (once + (effort.gradient_passes or 0)), AUTOCAST if effort.autocast else 1
    return price * gradients + tokens * effort.read_rows / rows * (2 if effort.differences else price)


@pytest.mark.parametrize("rows", [1_000, 4_000, 100_000])
@pytest.mark.parametrize(("epochs", "share"), [(3, 0.15), (3, 0.33), (1, 0.33), (3, 0.66)])
@pytest.mark.parametrize("autocast", ["always", "never"])
def test_what_grows_with_the_rows_stays_within_the_budget(request_with, rows, epochs, share, autocast):
    request, train = request_with(budget=share, autocast=autocast), index_of_rows(rows, tokens=40)
    request = request.model_copy(update={"training": request.training.model_copy(update={"epochs": epochs})})
    effort = effort_of(request, train, index_of_rows(200, tokens=40))
    assert effort.train_rows is None or effort.train_rows >= FEWEST_ROWS
    looked = 40 * (
        GRADIENT * (effort.heldout_rows or 200) + effort.of(request).prediction.evaluation_rows * GRADIENT * 4
    )
    floor = spent(dataclasses.replace(effort, train_rows=FEWEST_ROWS, gradient_passes=0.5, read_rows=0), train)
    paid = PADDED * (spent(effort, train) + looked)
    assert paid <= max(share * 3 * epochs * sum(train.tokens), PADDED * (floor + looked))


def test_without_a_budget_nothing_is_bounded(request_with):
    request, few = request_with(), index_of_rows(20, tokens=9)
    effort = effort_of(request, few, few)
    assert effort.train_rows is None and effort.of(request) is request


@pytest.mark.parametrize(
    ("steps", "own", "long"),
    [
        (LONG_RUN, {}, False),
        (LONG_RUN + 1, {}, True),
        (LONG_RUN + 1, {"max_anchors": 18}, False),
        (LONG_RUN + 1, {"gradient_budget": 0.4}, False),
        (LONG_RUN + 1, {"anchors": 1}, False),
        (LONG_RUN + 1, {"evaluations": 3}, False),
    ],
)
def test_without_a_budget_a_long_run_is_measured_at_more_of_its_steps(request_with, steps, own, long):
    """By what the settings are, not by whether they were written down: a form sends every default."""
    request, rows = request_with(), index_of_rows(steps, tokens=9)
    batches = request.training.model_copy(update={"batch_size": 1, "epochs": 1})
    prediction = type(request.prediction)(**request.prediction.model_dump() | own)
    request = request.model_copy(update={"training": batches, "prediction": prediction})
    spent = effort_of(request, rows, rows).of(request).prediction
    assert (spent.max_anchors == ANCHORS) is long and spent.path.to_the_last is (long or "evaluations" in own)
    full = request.model_copy(update={"adapter": request.adapter.model_copy(update={"method": "full"})})
    assert effort_of(full, rows, rows).of(full) is full


@pytest.mark.parametrize("tokens", [60, 120, 500])
@pytest.mark.parametrize("preset", ["quick", "standard", "thorough"])
def test_suites_and_answers_cost_a_tenth_of_the_real_run_at_most(tiny_request, preset, tokens):
    request = load_request(
        str(tiny_request), [f"effort.preset={preset}", "behaviour.enabled=true", "training.epochs=3"]
    )
    request = request.model_copy(update={"behaviour": BehaviourSettings(), "answers": AnswerSettings()})
    train = index_of_rows(1_000, tokens=tokens)
    spent = effort_of(request, train, index_of_rows(200, tokens=tokens)).of(request)
    assert DEARER * asked_tokens(spent, tokens) <= ASKED * 9 * sum(train.tokens)
    assert ASKED_FEWEST["behaviour.items"] <= spent.behaviour.items <= request.behaviour.items
    assert spent.behaviour.path.nulls and spent.behaviour.path.items >= ASKED_FEWEST["behaviour.path.items"]


def test_a_budget_leaves_pairs_the_order_that_alone_tells_their_noise(request_with):
    request, held = request_with(budget=0.15), index_of_rows(20, tokens=9)
    effort = effort_of(request, index_of_rows(1_000, tokens=9), held)
    path = AlongPathSettings(orders=2)
    asked = request.model_copy(update={"behaviour": request.behaviour.model_copy(update={"path": path})})
    of_pairs = dataclasses.replace(effort, paired=True)
    assert [each.of(asked).behaviour.path.orders for each in (effort, of_pairs)] == [0, 1]


def test_a_budget_that_pays_for_every_row_measures_every_row(request_with):
    effort = effort_of(request_with(budget=0.66), index_of_rows(100, tokens=40), index_of_rows(10, tokens=40))
    assert effort.train_rows is None and effort.gradient_passes


def test_a_small_budget_looks_at_the_held_out_rows_less_often(request_with):
    train, held = index_of_rows(1_000, tokens=40), index_of_rows(200, tokens=40)
    found = [effort_of(request_with(preset=preset), train, held).evaluations for preset in ("quick", "standard")]
    assert found[0] == 2 < found[1]
    asked = request_with(preset="quick")
    fixed = asked.model_copy(update={"prediction": asked.prediction.model_copy(update={"evaluations": 7})})
    effort = effort_of(fixed, train, held)
    assert effort.of(fixed).prediction.evaluations == 7 and effort.train_rows == FEWEST_ROWS


def test_on_a_budget_as_many_anchors_are_possible_whether_all_rows_are_measured_or_some(request_with):
    held = index_of_rows(10, tokens=40)
    for rows in (100, 5_000):
        request = request_with(budget=0.66)
        spelled = type(request.prediction)(**request.prediction.model_dump())  # every default, as a form sends them
        request = request.model_copy(update={"prediction": spelled})
        spent = effort_of(request, index_of_rows(rows, tokens=40), held).of(request).prediction
        assert spent.max_anchors == ANCHORS


def test_a_larger_budget_measures_the_smaller_ones_rows_and_more(request_with):
    train, held = index_of_rows(5_000, tokens=40), index_of_rows(200, tokens=40)
    wanted = [effort_of(request_with(preset=preset), train, held).train_rows for preset in ("quick", "standard")]
    assert wanted[0] <= wanted[1] < 5_000


@pytest.mark.parametrize("rows", [10_000, 100_000])
def test_no_more_rows_are_measured_than_are_kept_one_by_one_and_the_rest_goes_along_the_path(request_with, rows):
    request = request_with(budget=0.66)
    effort = effort_of(request, index_of_rows(rows, tokens=40), index_of_rows(200, tokens=40))
    kept = request.landscape.row_gradients
    assert 0.9 * kept < effort.train_rows < kept
    assert effort.gradient_passes > 1


@pytest.mark.parametrize(
    ("autocast", "dtype", "expected"),
    [("always", "float32", True), ("always", "bfloat16", False), ("never", "float32", False)],
)
def test_training_rows_are_measured_under_autocast_where_the_model_is_in_float32(
    request_with, autocast, dtype, expected
):
    asked = request_with(budget=0.33, autocast=autocast)
    asked = asked.model_copy(update={"model": asked.model.model_copy(update={"dtype": dtype})})
    effort = effort_of(asked, index_of_rows(1_000, tokens=40), index_of_rows(200, tokens=40))
    assert effort.autocast is expected
    assert ("under autocast" in (effort.line(effort.train_rows, 1_000) or "")) is expected


def test_autocast_pays_for_more_rows(request_with):
    train, held = index_of_rows(4_000, tokens=40), index_of_rows(200, tokens=40)
    plain, cast = (effort_of(request_with(budget=0.33, autocast=how), train, held) for how in ("never", "always"))
    assert cast.train_rows > 1.5 * plain.train_rows


@pytest.fixture
def few_rows(monkeypatch):
    """The tiny request has 18 rows: some of them have to be enough, and what does not grow would take all."""
    monkeypatch.setattr("foretune.flows.dag.effort.FEWEST_ROWS", 6)
    for counted in ("asked_tokens", "other_tokens"):
        monkeypatch.setattr(f"foretune.flows.dag.effort.{counted}", lambda *_: 1.0)


def test_a_run_on_a_budget_measures_some_rows_and_tells_of_all(simulated, few_rows):
    run = simulated("effort.budget=0.7", *FEW)
    summary, landscape = run.summary("prediction"), run.table("landscape", "samples")
    assert summary["steps"] == 10 and summary["gradient_samples_real"] == 36  # of all 18 rows, in batches of 4
    measured = [row for row in run.table("influence", "influence") if row["method"] != "estimated"]
    assert 6 <= len(measured) < len(landscape) < 18  # the others are read as far as the budget goes
    ranked = run.table("influence", "influence")
    assert len(ranked) == 18 and sorted(row["rank"] for row in ranked) == list(range(1, 19))
    told = run.store.open(run.made["influence"]).json("solver.json")["estimated"]
    assert sum(part["rows"] for part in told) == 18 - len(measured)
    assert {part["by"] for part in told} == {"the loss and the length", "the length"}
    assert run.summary("quality")["rows"] == 18  # faults of the data are looked for in every row


@pytest.mark.parametrize(
    "how",
    [
        ["landscape.storage=factored"],
        ["adapter={method: full}"],
        ["training.optimizer=sgd"],
        ["prediction.anchors=4"],
    ],
    ids=lambda how: how[0],
)
def test_means_on_a_budget_are_steadied_whatever_is_trained(simulated, few_rows, how):
    run = simulated("effort.budget=1.5", *FEW, "prediction.tolerance=1e-6", *how)
    anchors = run.store.open(run.made["path"]).json("path.json")["anchors"]
    assert anchors and all(0 <= anchor["gain"] <= 1 for anchor in anchors)
    assert any(anchor["gain"] < 1 for anchor in anchors)


def test_a_larger_budget_takes_only_what_a_smaller_one_left(simulated, few_rows):
    small = simulated("effort.budget=0.33", *FEW)
    large = simulated("effort.budget=2.0", *FEW)
    of_small, of_large = (
        {made.key for name, made in run.step.steps if name == "landscape_shard"} for run in (small, large)
    )
    assert of_small < of_large
    computed = [made.key for name, made in large.step.steps if name == "landscape_shard" and not made.cached]
    assert set(computed) == of_large - of_small


def test_the_losses_of_rows_without_gradients_are_those_with_them(simulated, few_rows):
    some, all_rows = (
        {row["sample_id"]: row["loss"] for row in simulated(*how).table("landscape", "samples")}
        for how in (["effort.budget=0.9", *FEW], [*FEW])
    )
    assert some and all(loss == pytest.approx(all_rows[sample_id], rel=1e-5) for sample_id, loss in some.items())


def test_differences_are_the_derivatives_that_rows_with_gradients_store(simulated, few_rows, monkeypatch):
    monkeypatch.setattr("foretune.flows.dag.effort.READ", 0.7)
    run = simulated("effort.budget=2.0", *FEW, "landscape.gradient_dtype=float32")
    told = run.store.open(run.made["influence"]).json("solver.json")["estimated"]
    assert [part["by"] for part in told] == ["a forward beside the base weights"]
    exact = simulated(*FEW, "landscape.gradient_dtype=float32")
    (directions,) = {made.key: made for name, made in run.step.steps if name == "influence_directions"}.values()
    column = {
        name: each[0].flatten() for name, each in run.store.open(directions).tensors("directions.safetensors").items()
    }
    blocks = [made for name, made in exact.step.steps if name == "landscape_shard"]
    stored = per_row_gradients(exact.step.run, blocks[: len(blocks) - 1], scale=4 / 2)
    derivatives = dict(zip(stored.ids, sum(stored.block(n) @ column[n] for n in stored.names).tolist(), strict=True))
    taken = [run.store.open(made) for name, made in run.step.steps if name == "influence_difference"]
    found = {
        sample_id: value
        for part in taken
        for sample_id, value in zip(
            part.json("samples.json"), part.tensors("differences.safetensors")["preconditioned"].tolist(), strict=True
        )
    }
    expected = [derivatives[sample_id] for sample_id in found]
    assert len(found) > 3
    assert list(found.values()) == pytest.approx(expected, rel=0.05, abs=0.02 * max(map(abs, expected)))


@pytest.mark.parametrize(
    ("outputs", "expected"), [(23_040, 0.25), (100_000, 0.0763), (155_520, 0.0491), (10**7, 0.0008)]
)
def test_of_a_large_adapter_fewer_coordinates_are_replayed_on_a_budget(request_with, outputs, expected):
    shapes = Footprint(10**9, 60, 10**8, outputs, outputs, 1, 1, 1, 1, 1)
    on_a_budget, exhaustive = request_with(budget=0.33), request_with()
    adapter = on_a_budget.adapter.model_copy(update={"r": 8})
    found = [
        _replay_settings(each.model_copy(update={"adapter": adapter}), shapes) for each in (on_a_budget, exhaustive)
    ]
    assert [each.coordinates for each in found] == [expected, 0.25]
    assert {each.runs for each in found} == {exhaustive.influence.replays.runs}


@pytest.mark.parametrize(
    ("row_tokens", "adapted", "dear"),
    [(31, 13_300_000, True), (140, 13_300_000, False), (140, 106_000_000, True), (1_000, 106_000_000, False)],
)
def test_on_a_budget_the_run_is_replayed_without_rows_where_that_is_little_of_it(
    request_with, row_tokens, adapted, dear
):
    shapes, rows = Footprint(135_000_000, 60, adapted, 1, 1, 1, 1, 1, 1, 1), index_of_rows(100, tokens=row_tokens)
    asked = [request_with(budget=0.33), request_with()]
    batches = asked[0].training.model_copy(update={"batch_size": 8})
    found = [replays_are_dear(each.model_copy(update={"training": batches}), rows, shapes) for each in asked]
    assert found == [dear, False]


def test_a_larger_budget_reads_more_preference_pairs_and_never_more_than_a_tenth_pays_for(request_with):
    train, held, pairs = (index_of_rows(rows, tokens=40) for rows in (20_000, 200, 20_000))
    read = [effort_of(request_with(budget=share), train, held, pairs).pair_rows for share in (0.005, 0.05, 0.1, 0.9)]
    assert read == sorted(read) and read[0] == FEWEST_PAIRS < read[2] and read[-1] == BESIDE_ROWS
    real = 3 * request_with().training.epochs * sum(train.tokens)
    assert read[2] * 2 * PAIRED * 40 <= OF_PAIRS * 0.1 * real
    without = effort_of(request_with(budget=0.2), train, held)
    assert without.pair_rows is None
    beside = effort_of(request_with(budget=0.2), train, held, pairs)
    assert (without.train_rows, without.gradient_passes) > (beside.train_rows, beside.gradient_passes)


def test_on_a_budget_some_pairs_are_read_and_their_errors_told(
    simulated, few_rows, tiny_rows, tiny_sae, tmp_path, monkeypatch
):
    monkeypatch.setattr("foretune.flows.dag.effort.FEWEST_PAIRS", 5)
    monkeypatch.setattr("foretune.flows.dag.effort.BESIDE_ROWS", 6)
    path = jsonl(tmp_path / "pairs.jsonl", pairs_of(tiny_rows))
    whole, some = (
        simulated(*FEW, f"dataset.preferences={path}", f"sae={{path: {tiny_sae}}}", "dataset.probes=null", *how)
        for how in ([], ["effort.budget=0.7"])
    )
    every = {row["sample_id"]: row["margin_raw"] for row in whole.table("preference", "pairs")}
    read = {row["sample_id"]: row["margin_raw"] for row in some.table("preference", "pairs")}
    assert 5 <= len(read) <= 6 < len(every) == len(tiny_rows)
    assert read == {sample_id: pytest.approx(every[sample_id], rel=1e-5) for sample_id in read}
    told = some.summary("preference")
    assert (told["pairs"], told["pairs_in_all"]) == (len(read), len(every))
    error = statistics.stdev(read.values()) * ((1 - len(read) / len(every)) / len(read)) ** 0.5
    assert told["margin_raw_error"] == pytest.approx(error)
    assert 0 < told["cosine_dpo_sft_error"] < 1
    errors = [row["relative_error"] for row in some.table("preference", "features")]
    assert all(error >= 0 for error in errors) and any(errors)
    assert "pairs_in_all" not in whole.summary("preference")
    assert some.summary("model_diff")["compared_pairs"] == len(read)


def test_under_autocast_training_rows_alone_are_measured_in_bfloat16(simulated, few_rows):
    plain, cast = (simulated("effort.budget=0.9", *FEW[1:], f"effort.autocast={how}") for how in ("never", "always"))
    shards = [[made.key for name, made in run.step.steps if name == "landscape_shard"] for run in (plain, cast)]
    alike = set(shards[0]) & set(shards[1])
    opened = [
        cast.store.open(made) for name, made in cast.step.steps if name == "landscape_shard" and made.key in alike
    ]
    heldout = {row["sample_id"] for row in cast.table("heldout_landscape", "samples")}
    assert {row["sample_id"] for shard in opened for row in shard.arrow("samples.parquet").to_pylist()} == heldout
    losses = [{row["sample_id"]: row["loss"] for row in run.table("landscape", "samples")} for run in (plain, cast)]
    differing = [losses[1][sample_id] - losses[0][sample_id] for sample_id in losses[0].keys() & losses[1].keys()]
    assert 0 < max(map(abs, differing)) < 0.05
    assert cast.summary("prediction")["steps"] == 10
