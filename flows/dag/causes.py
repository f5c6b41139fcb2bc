"""Which rows cause it, in the DAG: the rows that stand out on a watched suite, and the predicted run without them."""

from __future__ import annotations

from typing import Any

from foretune.flows.dag.effort import GRADIENT
from foretune.flows.dag.suites import AskedSuites
from foretune.flows.dag.watched import watched_suites
from foretune.flows.dag.wiring import Landscape, Wiring
from foretune.flows.request import Request
from foretune.tasks.behaviour.cause_effects import cause_effects
from foretune.tasks.behaviour.moved_weights import NoiseSettings
from foretune.tasks.behaviour.path_scores import path_scores
from foretune.tasks.influence.causes import causes
from foretune.tasks.loading.footprint import Footprint
from foretune.tasks.prediction.without_rows import EndSettings, without_rows
from foretune.tasks.samples.table import SampleIndex

REPLAYED_TOKENS = 110
"""What a replayed step would cost of an adapter on all weights, in tokens of a forward, on a processor. Measured on a
135M model: q and v, r=8, stored whole, 48 ms a step for 4.1 a token, 118; all linear layers, r=16, in factors, 0.2 to
0.3 s, 62 to 93."""
MOST_REPLAYED = 0.02  # of the real run, on a budget: rows of 31 tokens in batches of 8 on q and v are just beyond it


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
    if not asked or "path" not in made or wiring.row_coordinates("train") is None:
        return told
    if replays_are_dear(wiring.request, wiring.rows["train"].index, wiring.storage.shapes):
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


def replays_are_dear(request: Request, rows: SampleIndex, shapes: Footprint | None) -> bool:
    """Whether two replays take more of the real run than a budget has for them."""
    if request.effort.share is None or shapes is None:
        return False
    real = GRADIENT * request.training.rows_per_step * sum(rows.tokens) / len(rows.tokens)
    return 2 * REPLAYED_TOKENS * shapes.adapted / shapes.parameters > MOST_REPLAYED * real


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
