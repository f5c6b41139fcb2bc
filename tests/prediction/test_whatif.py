"""Other settings from stored gradients: equal to simulating them, and honest about how far they reach."""

from __future__ import annotations

from pathlib import Path

import pytest

from foretune.flows.commands.whatif import parsed, whatif
from foretune.flows.request import load_request, to_yaml
from foretune.storage.errors import BadInput
from foretune.storage.runs import Run
from foretune.tasks.prediction.horizon import path_summary, trusted_steps
from foretune.tasks.prediction.outcome import LOWEST, Outcome, lowest_few, marked
from foretune.tasks.prediction.stored_gradients import trusted_distance
from tests.conftest import request_beside
from tests.dag import run_dag

pytestmark = pytest.mark.slow

SINGLE = ["prediction.anchors=1", "landscape.gradient_dtype=float32"]


@pytest.fixture(scope="module")
def single(first_run, tmp_path_factory) -> Path:
    """The tiny request and, beside it, a root on which it was simulated with one anchor."""
    request = request_beside(first_run, tmp_path_factory.mktemp("single"))
    run_dag(request, *SINGLE)
    return request


@pytest.fixture
def simulated_run(single: Path, tmp_path: Path) -> Run:
    """That run on a root of the test's own, its request stored beside it."""
    request = load_request(str(request_beside(single, tmp_path)), SINGLE)
    run = Run(request.runtime.root, "called")
    run.write_request(to_yaml(request))
    return run


@pytest.mark.parametrize(
    "setting",
    [
        "training.learning_rate=3e-3",
        "training.epochs=3",
        "training.optimizer=sgd",
        "training.lr_scheduler_type=cosine",
        "adapter.r=4",
        "adapter.lora_alpha=4",
        "adapter.r=40",
        "training.weight_decay=0.1",
        "training.warmup_steps=3",
        "adapter.target_modules=[q_proj]",
    ],
)
def test_a_setting_is_what_its_own_simulation_predicts(simulated_run, tmp_path, setting):
    (outcome,) = whatif(simulated_run, [setting])["settings"]
    summary = run_dag(tmp_path / "request.yaml", *SINGLE, setting).summary("prediction")
    # Another rank or other modules start from another A: a simulation keeps rows in its coordinates, whatif cannot.
    close = 2e-2 if setting.startswith("adapter.") and "alpha" not in setting else 1e-5
    assert outcome["steps"] == summary["steps"]
    moved = summary["heldout_loss_base"] - summary["heldout_loss_predicted"]
    assert outcome["predicted_loss"] == pytest.approx(summary["heldout_loss_predicted"], abs=close * max(1, abs(moved)))


def test_the_grid_is_the_product_and_one_is_best(simulated_run):
    result = whatif(simulated_run, ["training.learning_rate=1e-4,1e-3", "training.epochs=1,2,3"])
    changed = [tuple(outcome["changed"].values()) for outcome in result["settings"]]
    assert changed == [(rate, epochs) for rate in ("1e-4", "1e-3") for epochs in ("1", "2", "3")]
    rows = [result["own"], *result["settings"]]
    assert sum(outcome["best"] for outcome in rows) == sum(outcome["lowest"] for outcome in rows) == 1
    page = (simulated_run.place / "whatif.html").read_bytes().decode()
    assert "Held-out loss by setting" in page
    assert (simulated_run.place / "whatif.json").exists()


def test_evaluating_spends_forward_passes_and_ranks_by_them(simulated_run):
    result = whatif(simulated_run, ["training.learning_rate=1e-4,1e-3"], evaluate=True)
    losses = [outcome["evaluated_loss"] for outcome in result["settings"]]
    assert None not in losses
    (best,) = (outcome for outcome in (result["own"], *result["settings"]) if outcome["best"])
    assert best["evaluated_loss"] == min(*losses, result["own"]["evaluated_loss"])


def test_a_setting_that_leaves_the_numbers_is_a_row(simulated_run):
    wild = [
        "training.optimizer=sgd",
        "training.max_grad_norm=0",
        "training.learning_rate=1000,1e-3",
        "training.epochs=50",
    ]
    result = whatif(simulated_run, wild)
    diverged, fine = result["settings"]
    assert diverged["status"].startswith("diverges: ")
    assert diverged["predicted_loss"] is None
    assert fine["evaluated_loss"] is not None
    (best,) = (row for row in (result["own"], diverged, fine) if row["best"])
    assert best["evaluated_loss"] == min(fine["evaluated_loss"], result["own"]["evaluated_loss"])


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("training.seed=1,2", "needs a simulation of its own; stored gradients answer for training.learning_rate"),
        ("dataset.max_length=64", "needs a simulation of its own"),
        ("training.epochs", "not of the form"),
        ("training.epochs=-1", "--set: training.epochs: input should be greater than 0"),
        ("training.epochs=1,1", "1 is there twice; give different values"),
        ("training.epochs=1,,2", "a value is empty; for example training.epochs=1,2"),
        ("training.learning_rate=abc", "training.learning_rate: input should be a valid number"),
        ("adapter.target_modules=[q_proj", "the value is not valid YAML"),
        ("adapter.target_modules=[]", "adapter.target_modules: value should have at least 1 item"),
        ("adapter.target_modules=q_proj", "adapter.target_modules: give a list, as in [q_proj, v_proj], or all-linear"),
        ("adapter.r=0", "adapter.r: input should be greater than or equal to 1"),
        ("adapter.target_modules=all-linear", "the run did not measure all-linear; simulate it"),
        ("adapter.target_modules=[gate_proj]", "gate_proj has no stored gradients; the run measured q_proj, v_proj"),
    ],
)
def test_what_stored_gradients_cannot_answer_is_one_line(simulated_run, option, said):
    with pytest.raises(BadInput, match=None) as fault:
        whatif(simulated_run, [option])
    assert said in str(fault.value)


def test_a_path_given_twice_is_one_line(simulated_run):
    with pytest.raises(BadInput, match="training.epochs: given twice"):
        whatif(simulated_run, ["training.epochs=1", "training.epochs=3"])


def test_a_run_whose_gradients_are_gone_says_so(simulated_run):
    for stored in simulated_run.store.iterate():
        if stored.task == "landscape_shard":
            simulated_run.store.place(stored.task, stored.key).delete()
    with pytest.raises(BadInput, match="simulate the request again"):
        whatif(simulated_run, ["training.epochs=1"])


def test_commas_inside_brackets_belong_to_a_value():
    assert parsed("adapter.target_modules=[q_proj, v_proj],[q_proj]") == (
        "adapter.target_modules",
        ["[q_proj, v_proj]", "[q_proj]"],
    )


def test_a_path_is_trusted_up_to_where_it_parts():
    points = [
        {"step": step, "predicted_loss": 1.0, "evaluated_loss": 1.0 + off, "distance": step}
        for step, off in ((0, 0), (1, 0.01))
    ]
    parted = {"step": 2, "predicted_loss": 0.5, "evaluated_loss": 0.9, "distance": 2.0}
    assert trusted_distance(points, 0.05) == 1
    assert trusted_distance([*points, parted, points[1] | {"step": 3, "distance": 3.0}], 0.05) == 1


def test_few_evaluations_leave_a_path_its_other_reasons():
    """With its end alone evaluated, a path is trusted as far as there are other reasons; never beyond a divergence."""
    start = {"step": 0, "predicted_loss": 4.0, "evaluated_loss": 4.0}
    agrees = {"step": 8, "predicted_loss": 3.0, "evaluated_loss": 3.01}
    parts = {"step": 8, "predicted_loss": 3.0, "evaluated_loss": 3.2}
    assert trusted_steps([start, agrees], 0.05, reach=2) == 8
    assert [trusted_steps([start, parts], 0.05, reach) for reach in (0, 5, 8)] == [0, 5, 7]
    assert path_summary([start, parts], 0.05)["trusted_steps"] == 0


def outcome(loss, trusted, evaluated=None):
    return Outcome({}, 10, "", trusted, loss, loss, evaluated, 0.1, "m")


def test_a_trusted_setting_goes_before_a_lower_number_that_is_not():
    found = marked([outcome(1.0, 4), outcome(2.0, 10), outcome(3.0, 10)])
    assert [each.lowest for each in found] == [False, True, False]
    assert [each.lowest for each in marked([outcome(1.0, 4), outcome(2.0, 5)])] == [True, False]


def test_best_is_who_is_lowest_when_evaluated():
    found = marked([outcome(1.0, 10, 2.5), outcome(2.0, 10, 2.0), outcome(1.5, 10)])
    assert [each.best for each in found] == [False, True, False]
    assert [each.lowest for each in found] == [True, False, False]
    assert not any(each.best for each in marked([outcome(1.0, 10), outcome(2.0, 10)]))
    assert not any(each.best for each in marked(found, evaluated=False))


def test_the_lowest_predicted_ones_are_evaluated_and_the_lowest_trusted_one():
    grid = {number: outcome(float(number), 4) for number in range(8)} | {8: outcome(8.0, 10), 9: outcome(9.0, 10)}
    assert lowest_few(grid) == [*range(LOWEST), 8]


ANCHORED = ["prediction.anchors=4", "prediction.gradient_budget=9", "prediction.gradient_passes=9"]
MEASURED = "20260101-000000-tiny-0001"


@pytest.fixture(scope="module")
def anchored(first_run, tmp_path_factory) -> Path:
    """The tiny request and, beside it, a root with a finished run that measured gradients along its path."""
    request = request_beside(first_run, tmp_path_factory.mktemp("anchored"))
    step, made = run_dag(request, *ANCHORED)
    run = Run(step.run.root, MEASURED)
    run.write_request(to_yaml(load_request(str(request), ANCHORED)))
    named = {name: {"uri": ref.uri, "sha256": ref.sha256, "cached": ref.cached} for name, ref in made.items()}
    run.write_result({"status": "completed", "artifacts": named})
    return request


@pytest.fixture
def measured_run(anchored: Path, tmp_path: Path) -> Run:
    request = load_request(str(request_beside(anchored, tmp_path)), ANCHORED)
    run = Run(request.runtime.root, MEASURED)
    run.write_request(to_yaml(request))
    return run


@pytest.mark.parametrize("evaluate", [None, True, False])
def test_a_runs_own_setting_is_the_runs_own_answer(measured_run, tmp_path, evaluate):
    request = load_request(str(tmp_path / "request.yaml"), ANCHORED)
    summary = run_dag(tmp_path / "request.yaml", *ANCHORED).summary("prediction")
    rate = request.training.learning_rate
    result = whatif(measured_run, [f"training.learning_rate={rate},{rate / 2}"], evaluate)
    for own in (result["own"], result["settings"][0]):
        assert own["predicted_loss"] == pytest.approx(summary["heldout_loss_predicted"], abs=1e-4)
        assert own["evaluated_loss"] == pytest.approx(summary["heldout_loss_evaluated"], abs=1e-4)
        assert (own["status"], own["trusted_steps"]) == (summary["trust"], summary["trusted_steps"])
    rows = result["settings"]
    if evaluate is False:
        assert not any(row["best"] for row in rows) and sum(row["lowest"] for row in rows) == 1
    else:
        lowest = min(row["evaluated_loss"] for row in rows)
        assert [row["best"] for row in rows] == [row["evaluated_loss"] == lowest for row in rows]


@pytest.mark.parametrize("setting", ["training.learning_rate=7e-4", "training.epochs=1", "training.warmup_steps=2"])
def test_a_setting_goes_along_the_measured_path_as_a_run_would(measured_run, tmp_path, setting):
    (row,) = whatif(measured_run, [setting], True)["settings"]
    led = run_dag(tmp_path / "request.yaml", *ANCHORED, f"prediction.along={MEASURED}", setting).summary("prediction")
    assert led["path_of"] == "an earlier run" and row["predicted_from"] == "measured path" and not row["why"]
    assert row["evaluated_loss"] == pytest.approx(led["heldout_loss_evaluated"], abs=1e-4)
    assert row["predicted_loss"] == pytest.approx(led["heldout_loss_evaluated"], abs=0.02)


@pytest.mark.parametrize(
    ("setting", "source", "why"),
    [
        ("adapter.r=4", "base gradients", "another adapter"),
        ("training.optimizer=sgd", "base gradients", "another training.optimizer"),
        ("training.learning_rate=2e-3", "measured path", "the path ends after step"),
    ],
)
def test_a_row_says_why_the_path_does_not_serve_it(measured_run, setting, source, why):
    (row,) = whatif(measured_run, [setting], False)["settings"]
    assert row["predicted_from"] == source
    assert row["why"].startswith(why)
    assert row["trusted_steps"] < row["steps"] or source == "base gradients"


def test_every_setting_is_replayed_once_and_what_is_done_is_told_before_and_meanwhile(measured_run, monkeypatch):
    from foretune.tasks.prediction import whatif as module

    replayed: list[int] = []
    known = module.replayed

    def counting(stored, virtual, *rest):
        replayed.append(len(virtual))
        return known(stored, virtual, *rest)

    monkeypatch.setattr(module, "replayed", counting)
    told, planned = [], []
    rates = ",".join(f"{n}e-4" for n in range(1, 7))
    result = whatif(
        measured_run, [f"training.learning_rate={rates}"], None, lambda *each: told.append(each), planned.append
    )
    assert replayed == [6]
    steps = result["settings"][0]["steps"]
    few = sum(each["evaluated_loss"] is not None for each in result["settings"])
    assert told[:steps] == [("replaying", step, steps, "steps") for step in range(steps)]
    assert told[steps:] == [("evaluating", done, few, "settings") for done in range(few)] and 3 <= few <= 4
    (plan,) = planned
    assert plan["settings"] == 6 and plan["evaluations"] == 4 and plan["rows"] == 6 and plan["seconds"] > 0
