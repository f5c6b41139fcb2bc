"""The SAE in the DAG, after the prediction: what is estimated, what is measured, against which noise, and its names."""

from __future__ import annotations

from typing import Any

from foretune.flows.dag.wiring import Landscape, Wiring
from foretune.tasks.concepts.contexts import feature_contexts
from foretune.tasks.concepts.features import feature_scores, features
from foretune.tasks.concepts.firings import firings
from foretune.tasks.concepts.moved import concepts
from foretune.tasks.inputs.sources import SaeSource
from foretune.tasks.inspection.sae_base import sae_base
from foretune.tasks.inspection.sae_diff import sae_diff
from foretune.tasks.inspection.sae_nulls import sae_nulls


def concept_passes(wiring: Wiring, train: Landscape, made: dict[str, Any]) -> dict[str, Any]:
    """Features and SAE diff, the null deltas where the request asks for some, the concepts that come of them, and
    what the feature browser shows beside these."""
    sources = wiring.sources
    source = SaeSource(sources.sae, sources.labels, sources.hook_name, sources.sae_name)  # pyright: ignore[reportArgumentType]
    return _read(wiring, made, source, train.gradient)


def _read(wiring: Wiring, made: dict[str, Any], source: SaeSource, gradient: Any) -> dict[str, Any]:
    """The passes of one SAE; without a gradient at its hook its features have no score."""
    request, sae, step = wiring.request, source.handle, wiring.step
    model, compared, settings = wiring.model, wiring.compared_rows(), request.features
    read = {"model": model, "sae": sae, "rows": compared}
    base = step(sae_base, settings=request.diff.compared, **read)
    estimated = {"gradient": None, "baseline": None, "base": base}
    if gradient is not None:
        estimated = {"gradient": gradient, "baseline": made["baseline"]}
    scores = step(feature_scores, prediction=made["prediction"], settings=settings.scored, **estimated, **read)
    shown = {
        "model": model,
        "sae": sae,
        "rows": wiring.rows["train"].subset(settings.naming.rows, "concepts"),
        "heldout": compared,
        "settings": settings.naming.read,
    }
    fired = step(firings, **shown)
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
    named = step(
        features,
        scores=scores,
        firings=fired,
        model=model,
        sae=sae,
        labels=source.labels,
        settings=settings.naming,
        diff=diff if settings.naming.endpoint else None,
    )
    moved = step(concepts, features=named, diff=diff, firings=fired, sae=sae, settings=settings.families)
    found = {"features": named, "sae_diff": diff, "concepts": moved}
    if gradient is None:  # the browser shows the first SAE
        return found
    contexts = step(feature_contexts, checkpoint=made["checkpoint"], firings=fired, **shown)
    return {**found, "feature_contexts": contexts}


def more_concepts(wiring: Wiring, made: dict[str, Any]) -> dict[str, Any]:
    """The same of every other SAE, by its place: `concepts_2` and on. The gradient is taken at the first one's hook
    alone, so that these have no score. Each has forwards of its own, which end at its hook."""
    found: dict[str, Any] = {}
    for number, source in enumerate(wiring.sources.more_saes, start=2):
        read = _read(wiring, made, source, None)
        found |= {f"{name}_{number}": artifact for name, artifact in read.items()}
    return found
