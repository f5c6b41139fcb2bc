"""Behaviour suites in the DAG: every suite under the base model and under the predicted one, and what changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from foretune.flows.dag.wiring import Landscape, Wiring
from foretune.tasks.behaviour.behaviour import behaviour
from foretune.tasks.behaviour.behaviour_path import behaviour_path
from foretune.tasks.behaviour.harness_path_scores import harness_path_scores
from foretune.tasks.behaviour.harness_scores import harness_scores
from foretune.tasks.behaviour.harness_tasks import HarnessTask, harness_suites
from foretune.tasks.behaviour.items import Suite, SuiteItems
from foretune.tasks.behaviour.moved_weights import NoiseSettings
from foretune.tasks.behaviour.path_scores import path_scores
from foretune.tasks.behaviour.settings import BehaviourSettings
from foretune.tasks.behaviour.suite_files import chosen_suites
from foretune.tasks.behaviour.suite_scores import suite_scores
from foretune.tasks.prediction.variants import variants


@dataclass(frozen=True)
class AskedSuites:
    """The request's suites with their items, and the scores of each under the base and under the predicted model."""

    chosen: list[tuple[Suite, SuiteItems | HarnessTask]]
    base: list[Any]
    predicted: list[Any]


def suites_of(settings: BehaviourSettings) -> list[tuple[Suite, SuiteItems | HarnessTask]]:
    """Every suite of a request: its own items, and then the tasks of lm-evaluation-harness."""
    return [*chosen_suites(settings), *harness_suites(settings)]


def asked_suites(wiring: Wiring, made: dict[str, Any]) -> AskedSuites:
    """Every suite that the request names under both models.

    The base model's scores wait for nothing and depend on no row: they are there for every later version of a dataset.
    """
    chosen = suites_of(wiring.request.behaviour)
    return AskedSuites(chosen, scores_of(wiring, None), scores_of(wiring, made["checkpoint"]))


def suite_passes(wiring: Wiring, train: Landscape, made: dict[str, Any], asked: AskedSuites) -> dict[str, Any]:
    """`behaviour`, over the scores of each suite, and `behaviour_path`; nothing where the request names none."""
    chosen = asked.chosen
    if not chosen:
        return {}
    compared = {
        "suites": [suite for suite, _ in chosen],
        "base": asked.base,
        "predicted": asked.predicted,
        "settings": wiring.request.behaviour.comparison,
    }
    told = {"behaviour": wiring.step(behaviour, **compared)}
    moving = variants_of(wiring, train, made)
    if moving is not None:
        along = [_along(wiring, made, moving, items) for _, items in chosen]
        measured = {"along": along, "variants": moving, "prediction": made["prediction"]}
        told["behaviour_path"] = wiring.step(behaviour_path, **compared, **measured)
    return told


def scores_of(wiring: Wiring, weights: Any) -> list[Any]:
    """Every suite's scores under the base model, a checkpoint or a weight change, in the suites' order. Of one wiring
    each model is asked once."""
    if weights not in wiring.suite_scores:
        wiring.suite_scores[weights] = _scores(wiring, weights)
    return wiring.suite_scores[weights]


def _scores(wiring: Wiring, weights: Any) -> list[Any]:
    settings, asked = wiring.request.behaviour, {"model": wiring.model, "tokenizer": wiring.tokenizer}
    found = []
    for _, items in suites_of(settings):
        harness = isinstance(items, HarnessTask)
        scores, own = (harness_scores, settings.harness) if harness else (suite_scores, settings.scoring)
        found.append(wiring.step(scores, weights=weights, items=items, settings=own, **asked))
    return found


def variants_of(wiring: Wiring, train: Landscape, made: dict[str, Any]) -> Any:
    """Weights on the way and at the ends of other orders; None without a measured path, without points to ask at, and
    for a full fine-tune, of which each would be as large as the model."""
    request, settings = wiring.request, wiring.request.behaviour.path
    if "path" not in made or request.adapter.method != "lora" or not settings.asks:
        return None
    return wiring.step(
        variants,
        nodes=train.blocks,
        path=made["path"],
        model=wiring.model,
        adapter=request.adapter,
        training=request.training,
        dpo_beta=wiring.dpo_beta,
        evaluation=wiring.evaluation_rows(),
        waypoints=settings.points,
        orders=settings.orders,
        max_relative_change=request.prediction.max_relative_change,
        settings=request.prediction.path,
    )


def _along(wiring: Wiring, made: dict[str, Any], moving: Any, items: SuiteItems | HarnessTask) -> Any:
    """One suite at all of these weights, and under random deltas: its first items."""
    request, settings, most = wiring.request, wiring.request.behaviour, wiring.request.behaviour.path.items
    asked = {
        "model": wiring.model,
        "adapter": request.adapter,
        "variants": moving,
        "prediction": made["prediction"],
        "tokenizer": wiring.tokenizer,
        "noise": NoiseSettings(deltas=settings.path.nulls, seed=settings.seed),
    }
    if isinstance(items, HarnessTask):
        few = items.model_copy(update={"limit": min(items.limit, most)})
        return wiring.step(harness_path_scores, items=few, settings=settings.harness, **asked)
    few = items.model_copy(update={"items": items.items[:most]})
    return wiring.step(path_scores, items=few, settings=settings.scoring, **asked)
