"""A gradient field in factors leads where the whole one does, by its own files and through every reader of it."""

from __future__ import annotations

import pytest

from foretune.flows.commands.whatif import stored_gradients
from foretune.flows.dag.influence import influence_passes
from foretune.flows.request import load_request
from foretune.storage.runs import Run
from foretune.tasks.checkpoint.checkpoint import checkpoint
from foretune.tasks.inputs.adapter_factors import stored_change, stored_delta
from foretune.tasks.inputs.factors import mean_gradients
from foretune.tasks.numerics.agreement import cosine
from foretune.tasks.prediction.outcome import Setting
from foretune.tasks.prediction.whatif import predicted_outcomes
from tests.conftest import request_beside
from tests.dag import called
from tests.flows.test_matrix import jsonl
from tests.loading.test_conversion import written

pytestmark = pytest.mark.slow

OVERRIDES = ("prediction.anchors=3", "prediction.gradient_budget=3")  # all before the path is stored already
# The micro-batches of a whole field, which a graph may hold: norms are told of each.
FACTORED = ("landscape.storage=factored", "landscape.storage_rank=16", "landscape.graph_tokens=1024")


def predicted(request, *overrides):
    """The store, and the artefacts up to the prediction and its checkpoint."""
    wiring = called(load_request(str(request), [*OVERRIDES, *overrides]))
    train, heldout = wiring.landscape("train"), wiring.landscape("heldout")
    made = {"train": train, "heldout": heldout, "curvature": wiring.curvature(train)}
    made |= influence_passes(wiring, train, heldout)
    made |= {task: ref for task, ref in wiring.step.steps if task == "influence_targets"}
    made |= wiring.prediction(train, heldout, made["curvature"])
    made["checkpoint"] = wiring.step(
        checkpoint, model=wiring.model, prediction=made["prediction"], settings=wiring.request.checkpoint
    )
    return wiring.step.run.store, made


@pytest.fixture(scope="module")
def request_file(tmp_path_factory, first_run):
    return request_beside(first_run, tmp_path_factory.mktemp("factored"))


@pytest.fixture(scope="module")
def both(request_file):
    return predicted(request_file), predicted(request_file, *FACTORED)


def test_the_prediction_is_that_of_the_whole_field(both):
    (store, whole), (_, factored) = both
    deltas = [stored_delta(store.open(made["prediction"])) for made in (whole, factored)]
    assert cosine(*deltas) > 0.999
    paths = [store.open(made["path"]) for made in (whole, factored)]
    points = [path.arrow("path.parquet").to_pylist() for path in paths]
    assert len(points[0]) == len(points[1]) >= 2
    for one, other in zip(*points, strict=True):
        assert one == pytest.approx(other, rel=2e-3)
    assert "delta.safetensors" not in paths[1].names()
    assert stored_change(store.open(factored["prediction"])).keys() == deltas[0].keys()


def test_what_reads_the_field_reads_it_in_factors(both):
    (store, whole), (_, factored) = both
    for name, file, column in (("influence", "influence", "score"), ("curvature", "layers", "K_ii")):
        one, other = (store.open(made[name]).arrow(f"{file}.parquet")[column].to_pylist() for made in (whole, factored))
        assert one == pytest.approx(other, rel=2e-2, abs=1e-6)
    stored = [store.open(made["influence_targets"]).tensors("targets.safetensors") for made in (whole, factored)]
    assert cosine(*stored) > 0.9999  # of the watched suite too
    written = [store.open(made["checkpoint"]).names() for made in (whole, factored)]
    assert written[0] == written[1]


def test_errors_are_stored_by_weight_and_losses_are_the_same(both):
    (store, whole), (_, factored) = both
    for one, other in zip(whole["train"].blocks, factored["train"].blocks, strict=True):
        assert one.key != other.key
        losses = [store.open(ref).arrow("samples.parquet")["loss_sum"].to_pylist() for ref in (one, other)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        norms = [store.open(ref).arrow("steps.parquet")["global_grad_norm"].to_pylist() for ref in (one, other)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-4)
        told = store.open(other).json("shard.json")["factors"]
        assert told["errors"] and all(0 <= whole < 0.2 for whole, _ in told["errors"].values())


def test_a_whole_field_has_the_keys_it_always_had(request_file, first):
    """What `first` stored is a hit for a request that names the new settings at their defaults."""
    wiring = called(load_request(str(request_file), ["landscape.storage=full", "landscape.storage_rank=3"]))
    assert all(block.cached for block in wiring.landscape("train").blocks)


def test_layers_that_are_computed_again_give_the_same_factors(request_file, both):
    store, made = both[1]
    wiring = called(load_request(str(request_file), [*OVERRIDES, *FACTORED, "model.gradient_checkpointing=true"]))
    again = mean_gradients(store.open(wiring.landscape("heldout").gradient))
    kept = mean_gradients(store.open(made["heldout"].gradient))
    assert cosine({n: g.dense() for n, g in again.items()}, {n: g.dense() for n, g in kept.items()}) > 0.9999


def test_other_settings_are_predicted_from_factors_as_from_whole_gradients(request_file, both):
    losses = []
    for more in ((), FACTORED):
        request = load_request(str(request_file), [*OVERRIDES, *more])
        _, stored = stored_gradients(Run(request.runtime.root, "called"), request)
        slower = request.training.model_copy(update={"learning_rate": 5e-4})
        other_rank = request.adapter.model_copy(update={"r": 4})
        settings = [Setting({}, request.adapter, slower), Setting({}, other_rank, request.training)]
        table = predicted_outcomes(stored, settings, request.prediction, None, everything=False)
        losses.append([outcome.predicted_loss for outcome in table.outcomes])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_gguf_file_is_stored_in_factors_where_its_field_is_too_large(tiny_llama, tiny_request, tmp_path):
    file = written(tmp_path / "tiny.gguf", tiny_llama)
    rows = jsonl(
        tmp_path / "rows.jsonl", [{"prompt": f"What is {n}?", "completion": f"It is {n + 1}."} for n in range(8)]
    )
    asked = [f"model.name_or_path={file}", f"runtime.root={tmp_path / 'root'}", f"dataset={{path: {rows}}}"]
    sizes = [called(load_request(str(tiny_request), [*asked, f"landscape.full_gb={gb}"])).storage for gb in (0, 20)]
    assert sizes[0].factors is not None and sizes[1].factors is None
