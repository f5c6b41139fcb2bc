"""Where the weights are on the way, and where other orders of the rows lead, from what the path has stored."""

from __future__ import annotations

import pytest
import torch

from foretune.flows.dag.simulation import simulation
from foretune.flows.request import load_request
from foretune.tasks.inputs.variants import merged, stored_variants, variant_factors
from foretune.tasks.loading import lora_scale
from foretune.tasks.prediction.variants import variants
from tests.conftest import request_beside
from tests.dag import called

pytestmark = pytest.mark.slow


def flat(moved):
    return torch.cat([moved[name].flatten() for name in sorted(moved)])


@pytest.mark.parametrize("anchors", [1, 4])
def test_variants_are_where_the_path_was_and_where_other_orders_end(first_run, tmp_path, anchors):
    overrides = [
        f"prediction.anchors={anchors}",
        "prediction.gradient_budget=9",
        "prediction.gradient_passes=9",
        "prediction.path_points=2",
        "training.epochs=2",
    ]
    request = load_request(str(request_beside(first_run, tmp_path)), overrides)
    wiring = called(request)
    made = simulation(wiring)
    store = wiring.step.run.store
    inputs = {
        "nodes": wiring.landscape("train").blocks,
        "path": made["path"],
        "model": wiring.model,
        "adapter": request.adapter,
        "training": request.training,
        "dpo_beta": wiring.dpo_beta,
        "evaluation": wiring.evaluation_rows(),
        "settings": request.prediction.path,
    }
    losses = {row["step"]: row["evaluated_loss"] for row in store.open(made["path"]).arrow("path.parquet").to_pylist()}
    points = {row["step"]: row["distance"] for row in store.open(made["path"]).arrow("path.parquet").to_pylist()}
    end = max(points)
    shared = inputs | {"waypoints": end - 1}
    stored = store.open(wiring.step(variants, **shared, orders=2, max_relative_change=10.0))
    *ways, first, second = stored_variants(stored)
    assert [way.step for way in ways] == list(range(1, end)) and {way.kind for way in ways} == {"waypoint"}

    def whole(variant):
        return flat(merged(variant_factors(stored, variant), scale))

    scale, evaluated = lora_scale(request.adapter), [way for way in ways if way.step in points]
    assert evaluated
    for way in evaluated:
        assert float(whole(way).norm()) == pytest.approx(points[way.step], rel=1e-3)  # shifts have the field's dtype
        assert way.loss == pytest.approx(losses[way.step], abs=1e-4)
    predicted = flat(store.open(made["prediction"]).tensors("delta.safetensors"))
    apart = [float((whole(each) - predicted).norm() / predicted.norm()) for each in (first, second)]
    assert {first.step, second.step} == {end} and first.seed != second.seed
    assert all(1e-3 < each < 1.0 for each in apart) and not torch.equal(whole(first), whole(second))
    bounded = store.open(wiring.step(variants, **shared, orders=0, max_relative_change=1e-4))
    weights = dict(wiring.model.open(wiring.step.run).model.named_parameters())
    for name, change in merged(variant_factors(bounded, ways[-1]), scale).items():
        assert float(change.norm()) == pytest.approx(1e-4 * float(weights[name].norm()), rel=1e-3)
