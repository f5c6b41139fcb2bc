"""Circuits in the DAG: what carries the change, for the prompts whose answers changed most."""

from __future__ import annotations

from typing import Any

from foretune.flows.dag.wiring import Wiring
from foretune.tasks.circuits.circuits import circuits


def circuit_passes(wiring: Wiring, made: dict[str, Any]) -> dict[str, Any]:
    """`circuits`; nothing where the request traces no prompt, or asks none."""
    request = wiring.request
    if not request.circuits.prompts or "answers" not in made:
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
