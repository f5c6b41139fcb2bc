"""What both models answer, in the DAG: prompts, the base asked once, the predicted model, and both side by side."""

from __future__ import annotations

from typing import Any

from foretune.flows.dag.wiring import Wiring
from foretune.tasks.behaviour.answers import answers
from foretune.tasks.behaviour.generations import generations
from foretune.tasks.behaviour.prompt_set import PromptSet, previewed_lengths, stored_lengths
from foretune.tasks.behaviour.prompts import prompts


def answer_passes(wiring: Wiring, made: dict[str, Any]) -> dict[str, Any]:
    """Prompts, and the answers of base and predicted model; nothing where the request asks nothing."""
    settings = wiring.request.answers
    if not settings.asks:
        return {}
    asked = prompt_set(wiring)
    shared = {"model": wiring.model, "settings": settings.generation()}
    base, predicted = (
        wiring.step(generations, role=role, weights=weights, prompts=asked, **shared)
        for role, weights in (("base", None), ("predicted", made["checkpoint"]))
    )
    side_by_side = wiring.step(
        answers, checkpoint=made["checkpoint"], prompts=asked.prompts, base=base, predicted=predicted, **shared
    )
    return {
        "prompts": asked.prompts,
        "base_answers": base,
        "predicted_answers": predicted,
        "answers": side_by_side,
    }


def real_answers(wiring: Wiring, made: dict[str, Any], real: dict[str, Any]) -> list[Any]:
    """The same prompts put to really trained models, by the name of each."""
    asked = _asked(wiring, made["prompts"])
    settings = wiring.request.answers.generation()
    return [
        wiring.step(generations, role=role, model=wiring.model, weights=weights, prompts=asked, settings=settings)
        for role, weights in real.items()
    ]


def prompt_set(wiring: Wiring) -> PromptSet:
    """The prompts of the run's rows and file, once they are chosen."""
    step, request = wiring.step, wiring.request
    made = step.ready(
        step(
            prompts,
            heldout=wiring.tables["heldout"],
            probes=wiring.tables["probes"] if request.dataset.probes else None,
            source=wiring.sources.prompts,
            tokenizer=wiring.tokenizer,
            count=request.answers.rows,
        )
    )
    return _asked(wiring, made)


def _asked(wiring: Wiring, made: Any) -> PromptSet:
    """The set of an artefact: read where it is stored, else worked out from the rows, as a plan needs it."""
    step, request = wiring.step, wiring.request
    if made.uri:
        lengths = stored_lengths(step.run, made)
    else:
        files = wiring.sources.rows
        roles = ("heldout", "probes") if request.dataset.probes else ("heldout",)
        rows = {role: (files[role], request.dataset) for role in roles}
        lengths = previewed_lengths(step.run, rows, wiring.sources.prompts, wiring.tokenizer, request.answers.rows)
    return PromptSet.of(made, wiring.tokenizer, lengths)
