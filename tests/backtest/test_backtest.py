"""A backtest trains for real, beside the simulation and never inside it, and says how near the simulation came."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from foretune.flows.backtest import against_training, backtest, training_plan
from foretune.flows.commands.remaining import Remaining
from foretune.flows.dag.simulation import simulation
from foretune.flows.request import Request, load_request
from foretune.storage.errors import BadInput
from foretune.storage.events import read_events, run_status
from foretune.storage.refs import ArtifactRef
from foretune.storage.results import artifact_of
from foretune.storage.runs import Run
from foretune.tasks.backtest.axes import scores, spread
from foretune.tasks.backtest.influence import datamodeling
from foretune.tasks.backtest.passes import trainer_of
from foretune.tasks.backtest.signals import base_name, came_true, dead_modules
from foretune.tasks.engine.invariants import BrokenInvariant
from foretune.tasks.engine.passes import content_task
from foretune.tasks.numerics.agreement import Agreement
from tests.dag import called
from tests.flows.test_command_line import assert_bad_input, foretune
from tests.storage.schema import event_schema

pytestmark = pytest.mark.slow

SUITES = 3  # of the tiny request
AXES = ["direction", "size", "loss", "layers", "concepts", "samples"]


def backtested(request: Request, seeds: list[int], retrain: int = 0) -> tuple[dict[str, Any], list[str], Run]:
    """The backtest without an engine: what it found, and what was computed for it."""
    wiring = called(request)
    step = wiring.step
    made = simulation(wiring)
    made |= against_training(wiring, made, trainer_of(wiring.dpo_beta), seeds, retrain)
    return step.run.store.open(made["agreement"]).json("agreement.json"), step.computed, step.run


def by_axis(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {axis["axis"]: axis for axis in found["axes"]}


@pytest.fixture(scope="module")
def request_file(tmp_path_factory: pytest.TempPathFactory, write_tiny_request) -> Path:
    """One folder for all tests of this file: what the first of them computed the others find."""
    return write_tiny_request(tmp_path_factory.mktemp("backtest"))


@pytest.fixture(scope="module")
def finished(prefect_server, request_file: Path) -> tuple[dict[str, Any], Run]:
    """Two seeds and four halves through the flow itself."""
    request = load_request(str(request_file))
    result = backtest(request, seeds=[42, 43], retrain=4, run_id="tested")
    return result, Run(request.runtime.root, "tested")


def test_a_backtest_scores_every_axis_with_an_interval(finished):
    result, _ = finished
    assert [axis["axis"] for axis in result["backtest"]["axes"]] == AXES
    for axis in result["backtest"]["axes"]:
        scores = axis["simulation"]
        assert axis["absent"] is None and scores["low"] <= scores["mean"] <= scores["high"]
        assert scores["low"] >= 0 and scores["high"] <= 1
    axes = by_axis(result["backtest"])
    assert axes["direction"]["rerun"]["mean"] > 0.5  # the yardstick: two orders of the same rows
    assert axes["direction"]["first_step"]["mean"] < axes["direction"]["simulation"]["mean"]
    assert axes["direction"]["simulation"]["mean"] > 0.9 and axes["loss"]["simulation"]["mean"] > 0.8


def test_the_real_models_are_asked_what_the_predicted_one_is(finished):
    result, run = finished
    found = result["backtest"]["answers"]
    methods = {each["method"]: each for each in found["methods"]}
    assert found["prompts"] == 6 and found["seeds"] == [42, 43] and set(methods) == {"simulation", "base", "rerun"}
    for each in methods.values():
        for name in ("same_answer", "equal_share", "same_next_token"):
            assert 0 <= each[name]["low"] <= each[name]["mean"] <= each[name]["high"] <= 1
    assert methods["simulation"]["same_next_token"]["mean"] > methods["base"]["same_next_token"]["mean"]
    assert methods["rerun"]["same_next_token"]["low"] == methods["rerun"]["same_next_token"]["high"]  # either way round
    assert "Does it answer as the real run does?" in run.read_report()


def test_the_answer_of_a_real_run_is_that_of_its_weights(finished):
    """The stored answers against transformers' own generate with the stored change added by hand."""
    import torch
    from transformers import AutoModelForCausalLM

    result, run = finished
    request = Request.model_validate(result["request"])
    read = run.store.open(artifact_of(run, "answer_agreement")).manifest.inputs
    answered, trained = (ArtifactRef(**read[name][0], uri="", sha256="") for name in ("answered", "real"))
    model = AutoModelForCausalLM.from_pretrained(request.model.name_or_path, attn_implementation="eager")
    delta = run.store.open(trained).tensors("delta.safetensors")
    with torch.no_grad():
        for name, change in delta.items():
            model.get_parameter(name).add_(change)
    prompts = run.store.open(artifact_of(run, "prompts")).arrow("prompts.parquet").to_pylist()
    said = {
        row["prompt_id"]: row["token_ids"] for row in run.store.open(answered).arrow("generations.parquet").to_pylist()
    }
    for row in prompts:
        ids = torch.tensor([row["input_ids"]])
        made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=48, do_sample=False)
        assert said[row["prompt_id"]] == made[0, ids.shape[1] :].tolist()


def test_a_task_of_a_backtest_counts_once(finished):
    result, run = finished
    events = [event for event in read_events(run) if event["type"] == "pass_finished"]
    keys = [(event["task"], event["key"]) for event in events]
    assert len(keys) == len(set(keys))
    assert result["tasks"] == {"run": len(keys), "cached": 0}  # the first run of its root
    again = backtest(Request.model_validate(result["request"]), seeds=[42, 43], retrain=4, run_id="again")
    assert again["tasks"] == {"run": 0, "cached": len(keys)}


def test_the_run_is_stored_and_listed_like_any_run(finished):
    result, run = finished
    assert run_status(run) == result["status"] == "completed"
    assert "runtime:" in run.read_request()
    page = run.read_report()
    assert page.startswith("<!DOCTYPE html>") and 'data-chart="radar"' in page and "http-equiv" in page
    listed = json.loads(foretune("runs", "--root", run.root, "--json").stdout.splitlines()[-1])
    assert "tested" in [row["run_id"] for row in listed["runs"]]
    assert {"agreement", "prediction", "checkpoint"} <= set(result["artifacts"])


def test_real_training_writes_its_own_events_into_the_run(finished):
    _, run = finished
    check = jsonschema.Draft202012Validator(event_schema(), format_checker=jsonschema.FormatChecker())
    events = read_events(run)
    for event in events:
        check.validate(event)
    real = [event for event in events if event["source"] == "training"]
    steps = [event for event in real if event["type"] == "step"]
    assert len(steps) == 2 * 10 + 4 * 6  # 18 rows by 4 and 9 rows by 4, two epochs
    assert [event["total"] for event in real if event["type"] == "progress"] == [10, 10, 6, 6, 6, 6]
    assert all(event["task"] == "real_run" and event["learning_rate"] > 0 for event in steps)
    assert [event["type"] for event in events].count("run_finished") == 1 and events[-1]["type"] == "run_finished"


def test_a_repeat_trains_nothing_and_more_seeds_train_only_the_missing(finished, request_file):
    request = load_request(str(request_file))
    _, computed, _ = backtested(request, [42, 43], retrain=4)
    assert computed == []
    found, computed, _ = backtested(request, [42, 43, 44], retrain=4)
    asked = ["generations", "answer_agreement", *["suite_scores"] * SUITES, "suite_agreement"]
    assert computed == ["real_run", "agreement", *asked, "backtest_report"]
    assert [run["seed"] for run in found["runs"]] == [42, 43, 44]


def test_the_time_of_training_is_told_before_it_starts(finished, request_file, tmp_path):
    request, (_, run) = load_request(str(request_file)), finished
    done = training_plan(run, request, [42, 43], 4)
    assert (done["real_runs"], done["to_train"], done["seconds"]) == (6, 0, 0)
    more = training_plan(run, request, [42, 43, 52, 53], 0)
    assert (more["real_runs"], more["to_train"]) == (4, 2) and more["seconds"] > 0
    waiting = [task for task in more["tasks"] if task["state"] == "run"]
    assert Counter(task["task"] for task in waiting) == {
        "real_run": 2,
        "agreement": 1,
        "generations": 2,
        "answer_agreement": 1,
        "suite_scores": 2 * SUITES,
        "suite_agreement": 1,
        "backtest_report": 1,
    }
    remaining = Remaining()
    remaining._ask(lambda: more)
    assert remaining.words.startswith(f"{len(more['tasks']) - len(waiting)} of {len(more['tasks'])}, about ")
    longer = request.model_copy(update={"model": request.model.model_copy(update={"dtype": "bfloat16"})})
    assert training_plan(Run(str(tmp_path / "empty"), "plan"), longer, [42], 0)["to_train"] == 1


def test_pairs_without_trl_are_one_line_before_anything_runs(request_file, monkeypatch, tmp_path):
    from importlib import metadata

    def without_trl(name: str) -> str:
        if name == "trl":
            raise metadata.PackageNotFoundError(name)
        return known(name)

    known = metadata.version
    monkeypatch.setattr("foretune.tasks.backtest.passes.metadata.version", without_trl)
    pairs = str(request_file.parent / "preferences.jsonl")
    settings = [f"dataset.path={pairs}", f"dataset.heldout.path={pairs}", "dataset.preferences=null", "sae=null"]
    request = load_request(str(request_file), [*settings, f"runtime.root={tmp_path}"])
    with pytest.raises(BadInput, match="trl's DPOTrainer; pip install trl"):
        training_plan(Run(str(tmp_path), "plan"), request, [42], 0)
    assert not list(tmp_path.iterdir())


def test_a_half_is_a_real_run_on_half_of_the_rows(finished, request_file):
    result, run = finished
    assert [half["rows"] for half in result["backtest"]["halves"]] == [9] * 4
    records = [
        run.store.open(run.store.find(stored.task, stored.key)).json("record.json")
        for stored in run.store.iterate()
        if stored.task == "real_run"
    ]
    rows = {record["role"]: record["rows"] for record in records}
    assert rows["half 0"] == rows["half 3"] == 9 and rows["seed 42"] == 18


@pytest.mark.parametrize("retrain", [0, 3])
def test_without_enough_halves_the_axis_is_absent_and_not_zero(finished, request_file, retrain):
    found, computed, _ = backtested(load_request(str(request_file)), [42], retrain)
    samples = by_axis(found)["samples"]
    assert samples["simulation"] is None and f"{retrain} halves" in samples["absent"]
    assert "real_run" not in computed and found["halves"] == []


def test_influence_on_another_target_is_not_held_against_the_loss(finished, request_file):
    found, *_ = backtested(load_request(str(request_file), ["influence.target.of=margin"]), [42, 43], retrain=4)
    samples = by_axis(found)["samples"]
    assert samples["simulation"] is None and "not about held-out loss" in samples["absent"]
    assert found["influence"] is None and len(found["halves"]) == 4


def test_preference_pairs_are_trained_with_dpo(request_file):
    pytest.importorskip("trl")
    pairs = str(request_file.parent / "preferences.jsonl")
    settings = [f"dataset.path={pairs}", f"dataset.heldout.path={pairs}", "dataset.preferences=null", "sae=null"]
    found, *_ = backtested(load_request(str(request_file), settings), [42])
    axes = by_axis(found)
    assert axes["direction"]["simulation"]["mean"] > 0.8
    assert axes["concepts"]["simulation"] is None and "no SAE" in axes["concepts"]["absent"]
    assert found["heldout_loss_base"] == pytest.approx(0.6931, abs=1e-3)  # log 2: the policy is the reference
    assert found["runs"][0]["heldout_loss"] < found["heldout_loss_base"]


def test_pairs_are_averaged_by_micro_batch_as_trl_averages_them(request_file):
    """One step of 4 and 2 pairs, so short that the loss is linear: the prediction is the step itself."""
    pytest.importorskip("trl")
    pairs = str(request_file.parent / "preferences.jsonl")
    settings = [f"dataset.path={pairs}", f"dataset.heldout.path={pairs}", "dataset.preferences=null", "sae=null"]
    one_step = ["training.gradient_accumulation_steps=2", "training.epochs=1", "training.optimizer=sgd"]
    found, *_ = backtested(load_request(str(request_file), [*settings, *one_step, "training.learning_rate=1e-4"]), [42])
    assert found["runs"][0]["steps"] == 1
    assert found["runs"][0]["cosine"] == pytest.approx(1, abs=1e-5)
    assert found["runs"][0]["norm_ratio"] == pytest.approx(1, abs=5e-3)


def test_a_full_fine_tune_is_tested_on_the_same_axes(request_file):
    settings = ["adapter.method=full", "training.learning_rate=1e-4", "sae=null", "dataset.preferences=null"]
    found, _, _ = backtested(load_request(str(request_file), settings), [42])
    assert by_axis(found)["direction"]["simulation"]["mean"] > 0.9


def test_only_a_task_that_says_so_may_train(tmp_path):
    import torch

    def stepping(draft: Any, run: Run) -> None:
        weight = torch.nn.Parameter(torch.ones(1))
        weight.grad = torch.ones(1)
        torch.optim.SGD([weight], lr=0.5).step()
        draft.write_json("weight.json", {"weight": float(weight.detach())})

    run = Run(str(tmp_path), "called")
    with pytest.raises(BrokenInvariant, match="SGD.step was called"):
        content_task(version=1)(stepping).fn(run=run)
    made = content_task(version=1, trains=True)(stepping).fn(run=run)
    assert run.store.open(made).json("weight.json") == {"weight": 0.5}


def test_a_module_is_dead_when_none_of_its_factors_moves():
    layer = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.default.weight"
    dead = {(0, "A"): True, (0, "B"): True, (1, "A"): True, (1, "B"): False}
    layers = [{"module": layer.format(*at), "dead": value} for at, value in dead.items()]
    assert dead_modules(layers) == {"model.layers.0.self_attn.q_proj.weight"}
    assert base_name("model.norm.weight") == "model.norm.weight"


def test_signals_are_held_against_what_real_training_showed():
    landscape = {"signals": [{"name": "dead_layer"}], "dead_layers": ["a.weight", "b.weight"]}
    prediction = {"signals": [{"name": "beyond_horizon"}], "heldout_loss_predicted": 2.0, "tolerance": 0.05}
    records = [{"signals": [{"name": "gradient_spike"}]}] * 2
    found = came_true(landscape, prediction, records, [{"a.weight", "c.weight"}] * 2, [2.01, 1.96])
    verdicts = {row["name"]: row["verdict"] for row in found}
    assert verdicts == {
        "dead_layer": "came true",
        "gradient_spike": "missed",
        "beyond_horizon": "did not come true",
    }
    assert found[0]["detail"] == "in both: a.weight; only simulated: b.weight; only real: c.weight"


def test_influence_that_foretells_the_loss_scores_positive():
    """A row with a negative score lowers the loss: the subset that keeps it ends lower."""
    scored = [
        {"sample_id": name, "method": "lissa", "lissa_score": score, "preconditioned_score": -score}
        for name, score in zip("abcd", (-3.0, -1.0, 1.0, 2.0), strict=True)
    ]
    kept = [["a", "b"], ["a", "c"], ["b", "c"], ["c", "d"]]
    found = datamodeling(scored, kept, [1.0, 1.5, 2.0, 3.0])
    assert found["score"] == pytest.approx(1.0)
    assert found["by_method"]["preconditioned"]["score"] == pytest.approx(-1.0)
    assert datamodeling(scored, [], []) is None


def test_scores_are_one_at_the_truth_and_fall_on_both_sides_of_it():
    true = {"cosine": 1.0, "norm_ratio": 1.0, "share": 1.0, "module_spearman": 1.0}
    assert set(scores(Agreement(**true)).values()) == {1.0, None}
    for ratio, share in ((2.0, 1.25), (0.5, 0.75)):
        off = scores(Agreement(**true | {"norm_ratio": ratio, "share": share}))
        assert (off["size"], off["loss"]) == (0.5, 0.75)
    assert scores(Agreement(**true | {"cosine": -0.4, "share": float("nan")}))["direction"] == 0.0
    assert scores(Agreement(**true | {"share": float("nan")}))["loss"] is None
    assert spread([0.5, None]) is None and spread([0.25, 0.75]) == {"mean": 0.5, "low": 0.25, "high": 0.75}


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (("--seeds", "1,x"), ("--seeds 1,x", "1,2,3")),
        (("--seeds", "1,1"), ("seeds 1, 1", "different")),
        (("--set", "dataset.path=missing.jsonl"), ("missing.jsonl",)),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tiny_request, words, fragments):
    assert_bad_input(foretune("backtest", tiny_request, *words), *fragments)
    assert not list((tiny_request.parent / "root" / "runs").glob("*"))


def test_suites_of_real_runs_are_those_of_their_weights(finished):
    """The stored scores against the base with the real change in place, and the changes told of them."""
    from statistics import fmean

    result, run = finished
    told = result["backtest"]["suites"]
    read = run.store.open(artifact_of(run, "suite_agreement")).manifest.inputs
    assert told["seeds"] == [42, 43] and len(told["suites"]) == SUITES == len(read["base"])

    def mean(ref: dict[str, Any]) -> float:
        rows = run.store.open(ArtifactRef(**ref, uri="", sha256="")).arrow("scores.parquet").to_pylist()
        return fmean(row["score"] for row in rows)

    for n, suite in enumerate(told["suites"]):
        base = mean(read["base"][n])
        assert suite["base"] == pytest.approx(base)
        assert suite["predicted"] == pytest.approx(mean(read["predicted"][n]) - base)
        assert suite["real"] == pytest.approx([mean(refs[n]) - base for refs in read["real"]])
        assert suite["spread"] == pytest.approx(abs(suite["real"][0] - suite["real"][1]))
    assert "Does it behave as the real run does?" in run.read_report()
