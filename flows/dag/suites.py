"""Behaviour suites in the DAG: every suite under the base model and under the predicted one, and what changed."""

from __future__ import annotations

from typing import Any

from foretune.flows.dag.wiring import Wiring
from foretune.tasks.behaviour.behaviour import behaviour
from foretune.tasks.behaviour.suite_files import chosen_suites
from foretune.tasks.behaviour.suite_scores import suite_scores


def suite_passes(wiring: Wiring, made: dict[str, Any]) -> dict[str, Any]:
    """`behaviour`, over the scores of each suite; nothing where the request names none.

    The base model's scores wait for nothing and depend on no row: they are there for every later version of a dataset.
    """
    settings = wiring.request.behaviour
    chosen = chosen_suites(settings)
    if not chosen:
        return {}

    def scores(checkpoint: Any) -> list[Any]:
        return [
            wiring.step(
                suite_scores,
                model=wiring.model,
                checkpoint=checkpoint,
                tokenizer=wiring.tokenizer,
                items=items,
                settings=settings.scoring,
            )
            for _, items in chosen
        ]

    suites = [suite for suite, _ in chosen]
    base, predicted = scores(None), scores(made["checkpoint"])
    return {
        "behaviour": wiring.step(behaviour, suites=suites, base=base, predicted=predicted, settings=settings.comparison)
    }
