"""Blocks of many rows are measured in parts along a path on a budget."""

from __future__ import annotations

import pytest
import torch

import foretune.tasks.prediction.settings as settings_module
from foretune.flows.request import load_request
from foretune.tasks.inputs.adapted import adapt
from foretune.tasks.prediction.evaluation import RowsAtWeights
from foretune.tasks.prediction.settings import PathSettings, SparingPathSettings
from foretune.tasks.samples.dataset import read_table
from tests.conftest import request_beside
from tests.dag import called

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["train", "preferences"], ids=["rows", "pairs"])
def rows(request, first_run):
    """All rows of a table, whose reference is the base model where they are pairs."""
    wanted = load_request(str(first_run), [])
    wiring = called(wanted)
    adapted = adapt(wiring.model.open(wiring.step.run), wanted.adapter, wanted.training.seed)
    beta = 0.1 if request.param == "preferences" else None
    return RowsAtWeights(adapted, read_table(wiring.step.run, wiring.tables[request.param]), beta, 64)


def test_what_the_parts_hold_is_what_the_whole_holds(rows):
    generator = torch.Generator().manual_seed(1)
    delta = {n: 0.02 * torch.randn(w.shape, generator=generator) for n, w in rows.adapted.weights.items()}
    whole, parts = rows.gradients(delta), [rows.part(first, 3) for first in range(3)]
    measured = [part.gradients(delta) for part in parts]
    counts = [len(part.trained) for part in parts]
    assert sum(counts) == len(rows.trained) and max(counts) - min(counts) <= 1
    assert sum(each.tokens for each in measured) == whole.tokens
    for name, total in whole.sums.items():
        torch.testing.assert_close(sum(each.sums[name] for each in measured), total, rtol=1e-3, atol=1e-4)
    assert rows.part(0, 1) is rows and rows.part(1, 3) is parts[1]
    alone = rows.part(len(rows.trained), 1000)  # of fewer rows than parts none is empty
    assert alone is rows.part(0, 1000) and len(alone.trained) == 1


def test_a_budget_cuts_blocks_of_many_rows_into_portions():
    sparing = SparingPathSettings(evaluations=4)
    blocks = ((64, 15), (64, 23), (13, 25), (13, 62))
    found = [sparing.portions(count * rows, count, again=1000, steps=375) for count, rows in blocks]
    assert found == [1, 1, 2, 4]
    assert PathSettings().portions(13 * 62, 13, again=1000, steps=375) == 1


def test_portions_are_smaller_where_few_rows_would_leave_long_segments():
    sparing = SparingPathSettings(evaluations=4)
    found = [sparing.portions(7 * 18, 7, again, steps=375) for again in (1000, 240, 120, 52, 5)]
    assert found == [1, 1, 2, 4, 4]
    assert sparing.portions(7 * 18, 7, again=52, steps=36) == 1  # three segments of 12 steps are short enough


def test_along_a_path_in_portions_there_are_more_anchors_for_the_rows_that_are_paid_for(
    first_run, tmp_path, monkeypatch
):
    overrides = ["prediction.evaluations=2", "prediction.gradient_budget=9", "prediction.tolerance=1e-6"]
    overrides += ["prediction.gradient_passes=1", "training.epochs=8", "training.learning_rate=1e-3"]

    def measured(rows):
        monkeypatch.setattr(settings_module, "PORTION_ROWS", rows)
        wiring = called(load_request(str(request_beside(first_run, tmp_path / str(rows))), overrides))
        train, heldout = wiring.landscape("train"), wiring.landscape("heldout")
        made = wiring.prediction(train, heldout, wiring.curvature(train))
        return wiring.step.run.store.open(made["path"]).json("path.json")

    whole, portions = measured(1000), measured(1)
    assert len(portions["anchors"]) > len(whole["anchors"])
    for path in (whole, portions):  # a pass over the rows is paid for; blocks differ in size
        assert path["measured_rows"] <= len(path["rows"]) + 4
