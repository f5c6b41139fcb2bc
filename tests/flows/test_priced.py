"""What a run was said to cost when it started, and what it says at its end."""

from __future__ import annotations

from foretune.flows.dag.simulation import simulation
from foretune.flows.dag.wiring import Wiring
from foretune.flows.priced import Priced
from foretune.flows.request import load_request
from foretune.storage.events import EventLog
from foretune.storage.runs import Run
from foretune.tasks.inputs.sources import resolve_sources
from foretune.tasks.report.publish import recorded
from foretune.tasks.report.run_section import with_run
from foretune.tasks.report.spent import PassCost, against_plan, deviations
from tests.dag import Called


def test_a_run_keeps_what_was_planned_and_tells_what_was_spent(warm_request, own_cache):
    request = load_request(str(warm_request), ["training.learning_rate=2e-3"])
    step = Priced(Called(Run(request.runtime.root, "20261129-101010-tiny-aaaa")))
    wiring = Wiring(step, request, resolve_sources(request.dataset, request.model, request.sae))
    made = simulation(wiring)
    step.write(wiring)
    EventLog.of(step.run).close()
    told = step.run.read_planned()
    assert [each["task"] for each in told] == [task.name for task, _ in step.noted]
    assert all(each["forward_tokens"] is not None for each in told)
    cost = recorded(step.run, request.model_dump(mode="json"), made).cost
    by_task = {each.task: each for each in cost.passes}
    assert "path" in by_task and "landscape_shard" not in by_task  # which was found
    assert by_task["model_diff"].forward_passes == by_task["model_diff"].planned_forward_passes > 0
    assert by_task["path"].bound == "at most"
    assert cost.planned_forward_passes >= cost.forward_passes * 0.8
    page = with_run("<!--run:cost--><!--run:timeline-->", recorded(step.run, request.model_dump(mode="json"), made), [])
    assert "Planned for what ran" in page and "forward passes and seconds spent, and planned" in page


def finished(task: str, label: str, seconds: float, forward: int) -> dict:
    return {"type": "pass_finished", "task": task, "label": label, "seconds": seconds, "forward_tokens": forward}


def test_the_worst_deviations_are_named_and_a_kept_bound_is_none():
    plan = [
        {"task": "a", "label": "a [0]", "forward_tokens": 100, "backward_tokens": 0, "bound": "exact", "seconds": 9.0},
        {"task": "b", "label": "b", "forward_tokens": 500, "backward_tokens": 0, "bound": "at most", "seconds": None},
        {"task": "c", "label": "c x", "forward_tokens": 100, "backward_tokens": 0, "bound": "about", "seconds": 1.0},
        {"task": "c", "label": "c x", "forward_tokens": 100, "backward_tokens": 0, "bound": "about", "seconds": 1.0},
    ]
    events = [finished("a", "a [0]", 90.0, 200), finished("b", "b", 1.0, 100), finished("c", "c x", 1.0, 120)]
    passes = against_plan(events, plan, tokens=100)
    assert passes[0] == PassCost("a", 2.0, 1.0, "exact", 90.0, 9.0)
    assert passes[1].planned_seconds is None
    assert passes[2].planned_forward_passes == 1.0  # one of two with its label was computed
    assert deviations(passes) == ("a 2.00 forward passes, planned 1.00", "a 90 s, planned 9")
