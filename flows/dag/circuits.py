"""Circuits in the DAG: what carries the change of an answer, and which concepts that of loss, suites and answers."""

from __future__ import annotations

from typing import Any

from foretune.flows.dag.suites import AskedSuites
from foretune.flows.dag.wiring import Wiring
from foretune.tasks.behaviour.concept_behaviour import concept_behaviour
from foretune.tasks.behaviour.items import SuiteItems
from foretune.tasks.circuits.circuits import circuits
from foretune.tasks.circuits.concept_causes import concept_causes


def circuit_passes(wiring: Wiring, made: dict[str, Any]) -> dict[str, Any]:
    """`circuits`; nothing where the request traces no prompt, or asks none, or splits its model: where a model lies is
    no part of a key, and of one that is split nothing can be traced."""
    request = wiring.request
    if not request.circuits.prompts or "answers" not in made or request.model.device_map is not None:
        return {}
    traced = wiring.step(
        circuits,
        model=wiring.model,
        checkpoint=made["checkpoint"],
        tokenizer=wiring.tokenizer,
        prompts=made["prompts"],
        answers=made["answers"],
        base=made["base_answers"],
        predicted=made["predicted_answers"],
        max_new_tokens=request.answers.max_new_tokens,
        settings=request.circuits,
    )
    return {"circuits": traced}


def concept_cause_passes(wiring: Wiring, made: dict[str, Any]) -> dict[str, Any]:
    """`concept_causes`; nothing without an SAE, and where the request tries no concept."""
    settings = wiring.request.concept_causes
    if not settings.features or "sae_diff" not in made:
        return {}
    tried = wiring.step(
        concept_causes,
        model=wiring.model,
        checkpoint=made["checkpoint"],
        sae=wiring.sources.sae,
        sae_diff=made["sae_diff"],
        rows=wiring.rows["heldout"].subset(settings.rows, "diff"),
        settings=settings.loss,
    )
    return {"concept_causes": tried}


def concept_behaviour_passes(wiring: Wiring, made: dict[str, Any], asked: AskedSuites) -> dict[str, Any]:
    """`concept_behaviour`, of what `concept_causes` tries; nothing where there are neither suites nor answers."""
    settings = wiring.request.concept_causes
    suites = [items for _, items in asked.chosen if isinstance(items, SuiteItems)] if settings.suites else []
    answers = settings.answers and "answers" in made
    if "concept_causes" not in made or not (suites or answers):
        return {}
    tried = wiring.step(
        concept_behaviour,
        model=wiring.model,
        checkpoint=made["checkpoint"],
        sae=wiring.sources.sae,
        causes=made["concept_causes"],
        tokenizer=wiring.tokenizer,
        behaviour=made["behaviour"] if suites else None,
        suites=suites,
        prompts=made["prompts"] if answers else None,
        predicted=made["predicted_answers"] if answers else None,
        max_new_tokens=wiring.request.answers.max_new_tokens,
        settings=settings.behaviour,
    )
    return {"concept_behaviour": tried}
