"""Passes that hold a graph take no more tokens at once than a step of the training does, but for those that
docs/limits.md names."""

from __future__ import annotations

from dataclasses import replace

import pytest

from foretune.flows.commands.history import History
from foretune.flows.commands.plan import Planned
from foretune.flows.dag import micro_batches
from foretune.flows.dag.costs import checked_sources
from foretune.flows.dag.micro_batches import CURVED, FEWEST, curved_within_step, step_tokens, within_step
from foretune.flows.dag.simulation import simulation
from foretune.flows.dag.wiring import Wiring
from foretune.flows.request import load_request
from foretune.storage.runs import Run
from foretune.tasks.engine.keys import identity
from foretune.tasks.samples.table import SampleIndex

ROWS = SampleIndex(["a", "b", "c"], [0, 1, 2], [50, 90, 70], [True, True, True], "prompt_completion")


@pytest.fixture
def request_of(tiny_request):
    def load(*overrides: str):
        return load_request(str(tiny_request), list(overrides))

    return load


def test_a_step_is_its_rows_as_long_as_the_longest(request_of):
    assert step_tokens(request_of("training.batch_size=2"), replace(ROWS, tokens=[500, 900, 700])) == 1800
    assert step_tokens(request_of("training.batch_size=64"), replace(ROWS, tokens=[500, 900, 700])) == 2700
    assert step_tokens(request_of("training.batch_size=64"), ROWS) == 270
    assert step_tokens(request_of("training.batch_size=1"), ROWS) == FEWEST
    assert step_tokens(request_of("training.batch_size=2"), replace(ROWS, form="preference")) == 2 * 180


def test_what_is_larger_than_a_step_is_lowered_and_no_key_moves(request_of):
    request = request_of("landscape.batch_tokens=100")
    lowered = within_step(request, 400)
    assert (lowered.landscape.batch_tokens, lowered.landscape.graph_tokens) == (100, 400)
    assert lowered.prediction.batch_tokens == lowered.influence.scoring.batch_tokens == 400
    products = curved_within_step(request, 400)
    assert products.batch_tokens == products.graph_tokens == 400 // CURVED
    for wide in ("adapter.method=full", "adapter.target_modules=all-linear"):
        less = curved_within_step(request_of(wide), 400)
        assert (less.batch_tokens, less.graph_tokens) == (400 // CURVED, 0)
    for before, after in (
        (request.prediction, lowered.prediction),
        (request.curvature, products),
        (request.landscape, lowered.landscape),
    ):
        assert identity(before) == identity(after)


@pytest.mark.parametrize("storage", ["full", "factored"])
def test_the_passes_with_the_largest_graphs_keep_to_it(request_of, monkeypatch, storage):
    """Over the wiring of all passes: the graph of a micro-batch, padded, against the step of this very training."""
    monkeypatch.setattr(micro_batches, "FEWEST", 1)
    asked = ("training.batch_size=2", "influence.watch=[refusal]", "influence.solver.when=always")
    request = request_of(*asked, f"landscape.storage={storage}")
    run = Run(request.runtime.root, "plan")
    step = Planned(run, History(run.store))
    wiring = Wiring(step, request, checked_sources(request))
    simulation(wiring)
    limit, seen = wiring.step_tokens, {}
    assert limit < 256
    for task in step.tasks:
        inputs = step.inputs[task.key]
        if task.task == "landscape_shard":
            settings, factored = inputs["settings"], inputs.get("factors") is not None
            assert factored == (storage == "factored")
            found = settings.micro_batch(factored)
            found = found if factored else min(settings.graph_tokens, found)  # whole ones are taken by pieces
            seen[task.task] = max(found, seen.get(task.task, 0))
        if task.task in ("path", "prediction", "influence_shard", "suite_gradient"):
            seen[task.task] = inputs["settings"].batch_tokens
        if task.task in ("sharpness", "influence_solve"):
            products = inputs["settings" if task.task == "sharpness" else "curvature"]
            seen[task.task] = 2 * (products.graph_tokens + products.batch_tokens)
    assert {"landscape_shard", "path", "suite_gradient", "sharpness", "influence_solve"} <= seen.keys()
    assert max(seen.values()) <= limit, seen
