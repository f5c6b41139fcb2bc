"""Other settings from stored gradients: equal to simulating them, and honest about how far they reach."""

from __future__ import annotations

from pathlib import Path

import pytest

from foretune.flows.commands.whatif import parsed, whatif
from foretune.flows.request import load_request, to_yaml
from foretune.storage.errors import BadInput
from foretune.storage.runs import Run
from foretune.tasks.prediction.whatif import Outcome, marked, trusted_distance
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
    assert sum(outcome["best"] for outcome in result["settings"]) == 1
    page = (simulated_run.place / "whatif.html").read_bytes().decode()
    assert "Held-out loss by setting" in page
    assert (simulated_run.place / "whatif.json").exists()


def test_evaluating_spends_forward_passes_and_ranks_by_them(simulated_run):
    result = whatif(simulated_run, ["training.learning_rate=1e-4,1e-3"], evaluate=True)
    losses = [outcome["evaluated_loss"] for outcome in result["settings"]]
    assert None not in losses
    (best,) = (outcome for outcome in result["settings"] if outcome["best"])
    assert best["evaluated_loss"] == min(losses)


def test_a_setting_that_leaves_the_numbers_is_a_row(simulated_run):
    wild = ["training.optimizer=sgd", "training.max_grad_norm=0", "training.learning_rate=1e30,1e-3"]
    diverged, fine = whatif(simulated_run, wild)["settings"]
    assert diverged["status"].startswith("diverges: ")
    assert diverged["predicted_loss"] is None
    assert fine["best"]


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
    points = [{"predicted_loss": 1.0, "evaluated_loss": 1.0 + off, "distance": d} for d, off in ((0, 0), (1, 0.01))]
    parted = {"predicted_loss": 0.5, "evaluated_loss": 0.9, "distance": 2.0}
    assert trusted_distance(points, 0.05) == 1
    assert trusted_distance([*points, parted, points[1] | {"distance": 3.0}], 0.05) == 1


def test_a_trusted_setting_goes_before_a_lower_number_that_is_not():
    def outcome(loss, trusted, evaluated=None):
        return Outcome({}, 10, "", trusted, loss, loss, evaluated, 0.1, "m")

    assert [each.best for each in marked([outcome(1.0, 4), outcome(2.0, 10), outcome(3.0, 10)])] == [False, True, False]
    assert [each.best for each in marked([outcome(1.0, 4), outcome(2.0, 5)])] == [True, False]
    assert [each.best for each in marked([outcome(1.0, 10, 2.5), outcome(2.0, 10, 2.0)])] == [False, True]
