"""The DAG, wired once: `flows.simulate` submits its tasks, `flows.commands.plan` only computes their keys."""

from __future__ import annotations

from typing import Any

from foretune.flows.dag.answers import answer_passes
from foretune.flows.dag.causes import cause_passes
from foretune.flows.dag.circuits import circuit_passes, concept_behaviour_passes, concept_cause_passes
from foretune.flows.dag.comparison import comparison
from foretune.flows.dag.concepts import concept_passes
from foretune.flows.dag.influence import influence_passes
from foretune.flows.dag.residual import residual_passes
from foretune.flows.dag.suites import asked_suites, suite_passes
from foretune.flows.dag.supervision import supervised
from foretune.flows.dag.wiring import Wiring
from foretune.tasks.checkpoint.checkpoint import checkpoint
from foretune.tasks.report.page import report


def simulation(wiring: Wiring) -> dict[str, Any]:
    """Wire every pass of one simulation and return its artefacts by name.

    1. samples of every role, what is supervised      5. the path, the prediction and its checkpoint
    2. quality per shard, leaks                        6. concepts: features, SAE diff, causes, residual change
    3. landscape per shard, train and held-out        7. null deltas and model diff
    4. prompt gain, curvature and influence           8. what both models answer, circuits, suites, which rows cause it
                                                      9. the report, from all of the above
    """
    step, request, sources = wiring.step, wiring.request, wiring.sources
    made: dict[str, Any] = {"samples": wiring.tables["train"]}
    made["supervision"] = supervised(wiring)
    made["quality"], made["leaks"] = wiring.quality(), wiring.leaks()
    if sources.sae is not None:
        made["baseline"] = wiring.baseline()
    train, heldout = wiring.landscape("train"), wiring.landscape("heldout")
    made |= {"landscape": train.layers, "heldout_landscape": heldout.layers}
    gain = wiring.prompt_gain(made)
    if gain is not None:
        made["prompt_gain"] = gain
    made["curvature"] = wiring.curvature(train)
    made |= influence_passes(wiring, train, heldout)
    made |= wiring.prediction(train, heldout, made["curvature"])
    made["checkpoint"] = step(
        checkpoint, model=wiring.model, prediction=made["prediction"], settings=request.checkpoint
    )
    if sources.sae is not None:
        made |= concept_passes(wiring, train, made)
        made |= concept_cause_passes(wiring, made)
    made |= residual_passes(wiring, made)
    pairs = wiring.preference(train, made)
    if pairs is not None:
        made["preference"] = pairs
    made |= comparison(wiring, made)
    made |= answer_passes(wiring, made)
    made |= circuit_passes(wiring, made)
    asked = asked_suites(wiring, made)
    made |= suite_passes(wiring, train, made, asked)
    made |= concept_behaviour_passes(wiring, made, asked)
    made |= cause_passes(wiring, train, made, asked)
    made["report"] = step(
        report, names=list(made), artifacts=list(made.values()), lines=wiring.lines(), settings=request.report
    )
    return made
