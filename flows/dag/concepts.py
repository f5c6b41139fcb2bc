"""The SAE in the DAG, after the prediction: what is estimated, what is measured, against which noise, and its names."""

from __future__ import annotations

from typing import Any

from foretune.flows.dag.wiring import Landscape, Wiring
from foretune.tasks.concepts.contexts import feature_contexts
from foretune.tasks.concepts.features import feature_scores, features
from foretune.tasks.concepts.firings import firings
from foretune.tasks.concepts.moved import concepts
from foretune.tasks.inspection.sae_base import sae_base
from foretune.tasks.inspection.sae_diff import sae_diff
from foretune.tasks.inspection.sae_nulls import sae_nulls


def concept_passes(wiring: Wiring, train: Landscape, made: dict[str, Any]) -> dict[str, Any]:
    """Features and SAE diff, the null deltas where the request asks for some, the concepts that come of them, and
    what the feature browser shows beside these."""
    request, sae, step = wiring.request, wiring.sources.sae, wiring.step
    model, compared, settings = wiring.model, wiring.compared_rows(), request.features
    read = {"model": model, "sae": sae, "rows": compared}
    scores = step(
        feature_scores,
        gradient=train.gradient,
        baseline=made["baseline"],
        prediction=made["prediction"],
        settings=settings.scored,
        **read,
    )
    shown = {
        "model": model,
        "sae": sae,
        "rows": wiring.rows["train"].subset(settings.naming.rows, "concepts"),
        "heldout": compared,
        "settings": settings.naming.read,
    }
    fired = step(firings, **shown)
    named = step(
        features,
        scores=scores,
        firings=fired,
        model=model,
        sae=sae,
        labels=wiring.sources.labels,
        settings=settings.naming,
    )
    base = step(sae_base, settings=request.diff.compared, **read)
    nulls = None
    if settings.nulls.draws:
        nulls = step(
            sae_nulls,
            prediction=made["prediction"],
            base=base,
            adapter=request.adapter,
            compared=request.diff.compared,
            settings=settings.nulls,
            **read,
        )
    diff = step(sae_diff, checkpoint=made["checkpoint"], base=base, nulls=nulls, settings=request.diff.compared, **read)
    moved = step(concepts, features=named, diff=diff, firings=fired, sae=sae, settings=settings.families)
    contexts = step(feature_contexts, checkpoint=made["checkpoint"], firings=fired, **shown)
    return {"features": named, "sae_diff": diff, "concepts": moved, "feature_contexts": contexts}
