"""Where the weights are on the way: the recursion advanced again over what the path has stored, without a model."""

from __future__ import annotations

import pytest
import torch

from foretune.flows.dag.simulation import simulation
from foretune.flows.request import load_request
from foretune.tasks.loading import lora_scale
from foretune.tasks.prediction.waypoints import merged, waypoint_factors, waypoint_steps, waypoints
from tests.conftest import request_beside
from tests.dag import called

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("anchors", [1, 4])
def test_a_waypoint_is_where_the_path_was_when_it_was_evaluated(first_run, tmp_path, anchors):
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
    }
    points = {row["step"]: row["distance"] for row in store.open(made["path"]).arrow("path.parquet").to_pylist()}
    end = max(points)
    stored = store.open(wiring.step(waypoints, **inputs, points=end - 1, max_relative_change=10.0))
    steps, scale = waypoint_steps(stored), lora_scale(request.adapter)
    assert steps == list(range(1, end))
    evaluated = {*steps} & {*points}
    assert evaluated
    for step in evaluated:
        moved = merged(waypoint_factors(stored, step), scale)
        distance = float(torch.cat([change.flatten() for change in moved.values()]).norm())
        assert distance == pytest.approx(points[step], rel=1e-3)  # the shift is stored in the field's dtype
    bounded = store.open(wiring.step(waypoints, **inputs, points=end - 1, max_relative_change=1e-4))
    weights = dict(wiring.model.open(wiring.step.run).model.named_parameters())
    for name, change in merged(waypoint_factors(bounded, steps[-1]), scale).items():
        assert float(change.norm()) == pytest.approx(1e-4 * float(weights[name].norm()), rel=1e-3)
