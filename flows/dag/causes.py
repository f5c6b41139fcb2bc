"""Which rows cause it, in the DAG: the rows that stand out on a watched suite, and the predicted run without them."""

from __future__ import annotations

from typing import Any

from foretune.flows.dag.suites import AskedSuites
from foretune.flows.dag.watched import watched_suites
from foretune.flows.dag.wiring import Landscape, Wiring
from foretune.flows.request import Request
from foretune.tasks.behaviour.cause_effects import cause_effects
from foretune.tasks.behaviour.moved_weights import NoiseSettings
from foretune.tasks.behaviour.path_scores import path_scores
from foretune.tasks.influence.causes import causes
from foretune.tasks.prediction.without_rows import EndSettings, without_rows


def cause_passes(wiring: Wiring, train: Landscape, made: dict[str, Any], suites: AskedSuites) -> dict[str, Any]:
    """`causes` where a suite is watched; `cause_effects` where the suites are asked and the run can be replayed without
    rows at a price that a budget has for it. The replays and the questions cost nothing where no row stands out."""
    watched = {suite.name for suite, _ in watched_suites(wiring)}
    if not watched:
        return {}
    found = wiring.step(
        causes,
        influence=made["influence"],
        outlier=wiring.request.influence.outlier,
    )
    told = {"causes": found}
    asked = [number for number, (suite, _) in enumerate(suites.chosen) if suite.name in watched]
    if not asked or "path" not in made or wiring.row_coordinates("train") is None or _dear(wiring):
        return told
    moved = wiring.step(
        without_rows,
        causes=found,
        nodes=train.blocks,
        path=made["path"],
        model=wiring.model,
        adapter=wiring.request.adapter,
        training=wiring.request.training,
        dpo_beta=wiring.dpo_beta,
        evaluation=wiring.evaluation_rows(),
        settings=EndSettings(
            max_relative_change=wiring.request.prediction.max_relative_change,
            batch_tokens=wiring.request.prediction.batch_tokens,
        ),
    )
    told["cause_effects"] = wiring.step(
        cause_effects,
        causes=found,
        suites=[suites.chosen[number][0] for number in asked],
        base=[suites.base[number] for number in asked],
        predicted=[suites.predicted[number] for number in asked],
        without=[_without(wiring, made, moved, suites.chosen[number][1]) for number in asked],
        variants=moved,
        prediction=made["prediction"],
        settings=wiring.request.behaviour.comparison,
    )
    return told


def _dear(wiring: Wiring) -> bool:
    """Whether a replay costs what a budget is not for: two of a large adapter, 375 steps of r=16 on all linear layers
    of a 135M model, took a fifth of the real run's seconds."""
    return wiring.request.effort.share is not None and wiring.storage.factors is not None


def replays_rows(request: Request) -> bool:
    """Whether a run of this request can be replayed without some rows, if they were kept one by one: LoRA, and a path
    to go along."""
    return request.adapter.method == "lora" and request.prediction.rule == "recursion"


def _without(wiring: Wiring, made: dict[str, Any], moved: Any, items: Any) -> Any:
    return wiring.step(
        path_scores,
        model=wiring.model,
        adapter=wiring.request.adapter,
        variants=moved,
        prediction=made["prediction"],
        tokenizer=wiring.tokenizer,
        items=items,
        noise=NoiseSettings(deltas=0, seed=wiring.request.behaviour.seed),
        settings=wiring.request.behaviour.scoring,
    )
