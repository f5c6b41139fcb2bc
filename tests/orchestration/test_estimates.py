"""What a plan says that passes send through the model, against what the events of the run then count."""

from __future__ import annotations

from collections import defaultdict

import pytest

from foretune.flows.commands.plan import make_plan
from foretune.flows.request import load_request
from foretune.storage.events import read_events
from tests.dag import Simulated

ABOUT = 2
"""An estimate from texts is within this factor."""


def counted(run) -> dict[str, tuple[int, int]]:
    """Forward and backward tokens of every pass that the run computed, by its key."""
    return {
        event["key"]: (event.get("forward_tokens", 0), event.get("backward_tokens", 0))
        for event in read_events(run)
        if event["type"] == "pass_finished"
    }


def compared(planned: list[dict], spent: dict[str, tuple[int, int]]) -> dict[str, list[tuple[dict, tuple[int, int]]]]:
    """Planned and counted of every computed task, by its name; the plan says nothing that does not hold."""
    found = defaultdict(list)
    for task in planned:
        if task["key"] not in spent:
            continue
        forward, backward = spent[task["key"]]
        said = task["forward_tokens"], task["backward_tokens"]
        where = f"{task['task']} {task['shard']}: {task['bound']} {said}, counted {(forward, backward)}"
        if task["bound"] == "exact":
            assert said == (forward, backward), where
        elif task["bound"] == "at most":
            assert forward <= said[0] and backward <= said[1], where
        elif task["bound"] == "about":
            pairs = zip(said, (forward, backward), strict=True)
            assert all(told / ABOUT <= spent_ <= told * ABOUT for told, spent_ in pairs), where
        else:
            raise AssertionError(f"{task['task']}: nothing is said of it")
        found[task["task"]].append((task, (forward, backward)))
    return found


def bare(first: Simulated, *overrides: str) -> list[dict]:
    """The plan of the tiny request on an empty root."""
    root = first.step.run.root
    request = load_request(f"{root}/../request.yaml", [f"runtime.root={root}-empty", *overrides])
    return make_plan(request)["tasks"]


@pytest.fixture
def tiny(first, own_cache):
    return bare(first), counted(first.step.run)


def test_every_estimate_of_the_tiny_run_holds(tiny):
    found = compared(*tiny)
    assert {"landscape_shard", "path", "baseline_shard", "feature_scores", "sae_base", "sae_diff"} <= found.keys()
    counting = {name for name, tasks in found.items() if any(forward for _, (forward, _) in tasks)}
    exact = {name for name in counting if found[name][0][0]["bound"] == "exact"}
    assert {"landscape_shard", "prompt_gain_shard", "curvature_samples", "null_deltas", "model_diff"} <= exact
    for name in ("baseline_shard", "feature_scores", "sae_base", "sae_diff"):
        assert all(forward for _, (forward, _) in found[name]), f"{name} counts nothing"


@pytest.mark.parametrize(
    "overrides",
    [
        ("curvature.quotients=exact", "curvature.graph_tokens=0"),
        (
            "curvature.curvature=hessian",
            "curvature.quotients=exact",
            "influence.solver.damping=0.95",
            "prediction.rayleigh_lambda=9",
        ),
        ("influence.solver.preset=tuned", "influence.solver.check=true", "influence.tokens_of=0"),
        ("influence.target.of=margin", "landscape.row_gradients=0"),
        ("influence.target.of=feature", "influence.target.feature=3"),
        ("prediction.anchors=3", "prediction.gradient_budget=2", "answers.samples=2"),
        ("prediction.rule=rayleigh", "sae=null"),
    ],
    ids=" ".join,
)
def test_estimates_hold_under_other_settings(simulated, first, own_cache, overrides):
    planned = bare(first, *overrides)  # before this machine has anything to remember
    spent = counted(simulated(*overrides).step.run)
    assert spent
    compared(planned, spent)
