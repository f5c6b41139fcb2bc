"""Influence in the DAG: targets, a solve where one is asked for, directions, shards, replays, and the ranking."""

from __future__ import annotations

from typing import Any

from foretune.flows.dag.watched import target_suite, watched_gradients
from foretune.flows.dag.wiring import Landscape, Wiring
from foretune.flows.request import Request
from foretune.storage.errors import BadInput
from foretune.tasks.influence.derivatives import influence_directions, influence_shard
from foretune.tasks.influence.differences import influence_difference
from foretune.tasks.influence.ranking import RankingSettings, influence
from foretune.tasks.influence.replays import ReplaySettings, influence_replays
from foretune.tasks.influence.solve import influence_solve
from foretune.tasks.influence.target_gradients import feature_gradient, margin_gradient
from foretune.tasks.influence.targets import influence_targets
from foretune.tasks.influence.tokens import influence_tokens
from foretune.tasks.loading.footprint import Footprint

MIN_REPLAYED_ROWS = 8  # fewer rows have too few halves to tell one from another
MOST_REPLAYED = 4e9  # on a budget: steps of all replays times the coordinates that are replayed


def influence_passes(wiring: Wiring, train: Landscape, heldout: Landscape) -> dict[str, Any]:
    """The ranking of the training rows, and the tokens of one of them where the request names it.

    Where the landscape stored per-row gradients, no model is opened to score them.
    """
    request, settings = wiring.request, wiring.request.influence
    adapter, seed, training = request.adapter, request.training.seed, request.training
    targets = _targets(wiring, heldout)
    solve = _solve(wiring, train, targets)
    directions = wiring.step(
        influence_directions,
        targets=targets,
        nodes=train.blocks,
        adapter=adapter,
        seed=seed,
        dtype=request.model.dtype,
        optimizer=training.optimizer,
        rows_per_step=training.rows_per_step,
        adam_epsilon=training.adam_epsilon,
    )
    shards = _shards(wiring, train, solve, directions)
    replays = _replays(wiring, train, targets, shards)
    further = _others(wiring, train, targets, directions)
    made = {
        "influence": wiring.step(
            influence,
            samples=wiring.tables["train"],
            shards=shards,
            gradient=train.gradient,
            solve=solve,
            targets=targets,
            schedule=training.schedule,
            settings=RankingSettings(**settings.model_dump(include=set(RankingSettings.model_fields))),
            replays=replays,
            **further,
        )
    }
    if settings.tokens_of is not None:
        made["influence_tokens"] = wiring.step(
            influence_tokens,
            rows=wiring.rows["train"].one(settings.tokens_of),
            directions=directions,
            model=wiring.model,
            adapter=adapter,
            seed=seed,
        )
    return made


def _others(wiring: Wiring, train: Landscape, targets: Any, directions: Any) -> dict[str, Any]:
    """What the rows without gradients are scored by: their losses a step along the direction, where the budget pays
    for it, else what the landscape tells of them. Nothing where every row has a gradient."""
    request, others = wiring.request, wiring.rows["train"].others
    if not others:
        return {}
    if not wiring.effort.differences:
        return {"landscape": train.layers}
    shared = {
        "directions": directions,
        "targets": targets,
        "model": wiring.model,
        "adapter": request.adapter,
        "seed": request.training.seed,
        "dpo_beta": wiring.dpo_beta,
        "settings": request.landscape.reading,
    }
    read = zip(others, train.read_only, strict=True)  # all of them are read
    taken = [wiring.step(influence_difference, rows=rows, losses=losses, **shared) for rows, losses in read]
    return {"landscape": train.layers, "differences": taken}


def _shards(wiring: Wiring, train: Landscape, solve: Any, directions: Any) -> list[Any]:
    """The scores, shard by shard: from per-row gradients where the landscape stored them, else by a model."""
    request, rows = wiring.request, wiring.rows["train"]
    shared = {
        "solve": solve,
        "directions": directions,
        "adapter": request.adapter,
        "seed": request.training.seed,
        "dpo_beta": wiring.dpo_beta,
        "settings": request.influence.scoring,
    }
    if wiring.row_coordinates("train") is None:
        return [wiring.step(influence_shard, rows=leaf, model=wiring.measuring, **shared) for leaf in rows.leaves]
    sources = zip(rows.nodes, train.blocks, strict=True)
    return [wiring.step(influence_shard, rows=node_rows, node=block, **shared) for node_rows, block in sources]


def _replays(wiring: Wiring, train: Landscape, targets: Any, shards: list[Any]) -> Any:
    """Replays of halves of the rows; None without per-row gradients, with too few rows, or without AdamW."""
    request, training = wiring.request, wiring.request.training
    kept = wiring.row_coordinates("train") is not None
    if not kept or training.optimizer != "adamw" or len(wiring.rows["train"].index.trained_ids) < MIN_REPLAYED_ROWS:
        return None
    return wiring.step(
        influence_replays,
        nodes=train.blocks,
        targets=targets,
        shards=shards,
        adapter=request.adapter,
        training=training.model_copy(update={"learning_rate": 1.0, "weight_decay": 0.0}),
        settings=_replay_settings(request, wiring.storage.shapes),
    )


def _replay_settings(request: Request, shapes: Footprint | None) -> ReplaySettings:
    """On a budget fewer coordinates of a large adapter: 1,024 replays of 421 rows over 54 steps take 9 s over a quarter
    of r=8 on q and v of a 135M model, and 17 s over a hundredth of r=16 on all linear layers."""
    asked = request.influence.replays
    if request.effort.share is None or shapes is None:
        return asked
    share = MOST_REPLAYED / (asked.runs * asked.steps * shapes.outputs * request.adapter.r)
    return asked.model_copy(update={"coordinates": min(asked.coordinates, max(round(share, 4), 1e-4))})


def _targets(wiring: Wiring, heldout: Landscape) -> Any:
    """What influence is measured on, as gradients in adapter coordinates."""
    request = wiring.request
    return wiring.step(
        influence_targets,
        gradient=_target_gradient(wiring, heldout),
        nodes=heldout.blocks,
        samples=wiring.tables["heldout"],
        rows=wiring.rows["heldout"].subset(request.influence.target.rows, "targets").subset,
        adapter=request.adapter,
        seed=request.training.seed,
        dtype=request.model.dtype,
        **watched_gradients(wiring),
    )


def _target_gradient(wiring: Wiring, heldout: Landscape) -> Any:
    """Gradient of the ranking target in the full weights."""
    request, target = wiring.request, wiring.request.influence.target
    if target.of == "margin":
        pairs = wiring.pairs()
        if pairs is None:
            raise BadInput("influence.target.of is margin, but there are no pairs; give dataset.preferences")
        shared = {"model": wiring.model, "targets": request.adapter.targets, **wiring.storage.inputs()}
        return wiring.step(margin_gradient, pairs=pairs, **shared)
    if target.of == "heldout":
        return heldout.gradient
    if target.of == "suite":
        return target_suite(wiring)
    if wiring.sources.sae is None:
        raise BadInput("influence.target.of is feature, but there is no SAE; give sae.path or sae.release")
    return wiring.step(
        feature_gradient,
        rows=wiring.evaluation_rows(),
        model=wiring.model,
        sae=wiring.sources.sae,
        labels=wiring.sources.labels,
        feature=target.feature,
        targets=request.adapter.targets,
        **wiring.storage.inputs(),
    )


def _solve(wiring: Wiring, train: Landscape, targets: Any) -> Any:
    """LiSSA's solve; None where nothing asks for it."""
    request, solver = wiring.request, wiring.request.influence.solver
    if not request.influence.solves:
        return None
    own = {}
    if solver.preconditioner == "adam":
        own = {"nodes": train.blocks, "rows_per_step": request.training.rows_per_step}
    return wiring.step(
        influence_solve,
        rows=wiring.curvature_rows(),
        targets=targets,
        model=wiring.model,
        adapter=request.adapter,
        seed=request.training.seed,
        curvature=wiring.curvature_products(),
        solver=solver,
        **own,
    )
