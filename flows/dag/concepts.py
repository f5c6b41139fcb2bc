"""SAEs in the DAG, after the prediction: what is estimated, what is measured, against which noise, and its names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from foretune.flows.dag.wiring import Landscape, Wiring
from foretune.tasks.concepts.contexts import feature_contexts
from foretune.tasks.concepts.features import feature_scores, features
from foretune.tasks.concepts.firings import firings
from foretune.tasks.concepts.moved import concepts
from foretune.tasks.inputs.handles import SaeHandles
from foretune.tasks.inputs.sae_part import sae_part
from foretune.tasks.inputs.sources import SaeSource
from foretune.tasks.inspection.sae_base import sae_base
from foretune.tasks.inspection.sae_diff import sae_diff
from foretune.tasks.inspection.sae_nulls import sae_nulls


@dataclass(frozen=True)
class Measured:
    """What forwards tell of one SAE: the estimates, where it fires, and its change."""

    scores: Any
    firings: Any
    diff: Any


def concept_passes(wiring: Wiring, train: Landscape, made: dict[str, Any]) -> dict[str, Any]:
    """Of every SAE its features, SAE diff and the concepts that come of them; what is of another than the first has the
    name of its place, `concepts_2` and on. What the feature browser shows beside these is of the first."""
    sources = wiring.sources
    first = SaeSource(sources.sae, sources.labels, sources.hook_name, sources.sae_name)  # pyright: ignore[reportArgumentType]
    several = (first, *sources.more_saes)
    found: dict[str, Any] = {}
    for number, (source, read) in enumerate(
        zip(several, measured(wiring, made, several, train.gradient), strict=True), start=1
    ):
        own = named(wiring, source, read)
        if number > 1:
            found |= {f"{name}_{number}": artifact for name, artifact in own.items()}
            continue
        contexts = wiring.step(
            feature_contexts,
            checkpoint=made["checkpoint"],
            firings=read.firings,
            sae=source.handle,
            **_shown(wiring),
        )
        found = {**own, "feature_contexts": contexts}
    return found


def measured(
    wiring: Wiring, made: dict[str, Any], several: tuple[SaeSource, ...], gradient: Any | None
) -> list[Measured]:
    """The passes that run the model, with the null deltas where the request asks for some. Each goes forward once for
    all SAEs, to the deepest hook. The gradient is at the first one's hook; an SAE without one has no score."""
    request, step, settings = wiring.request, wiring.step, wiring.request.features
    handles = tuple(source.handle for source in several)
    sae = handles[0] if len(handles) == 1 else SaeHandles(each=handles)
    read = {"model": wiring.model, "sae": sae, "rows": wiring.compared_rows()}
    base = step(sae_base, settings=request.diff.compared, **read)
    estimated = {"gradient": None, "baseline": None, "base": base}
    if gradient is not None:
        estimated |= {"gradient": gradient, "baseline": made["baseline"]}
        if len(handles) == 1:
            del estimated["base"]
    scores = step(feature_scores, prediction=made["prediction"], settings=settings.scored, **estimated, **read)
    fired = step(firings, sae=sae, **_shown(wiring))
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
    if len(handles) == 1:
        return [Measured(scores, fired, diff)]
    taken = [[step(sae_part, read=each, place=n + 1) for n in range(len(handles))] for each in (scores, fired, diff)]
    return [Measured(*parts) for parts in zip(*taken, strict=True)]


def named(wiring: Wiring, source: SaeSource, read: Measured) -> dict[str, Any]:
    """The features by name, and which concepts moved, of one SAE."""
    settings = wiring.request.features
    called = wiring.step(
        features,
        scores=read.scores,
        firings=read.firings,
        model=wiring.model,
        sae=source.handle,
        labels=source.labels,
        settings=settings.naming,
        diff=read.diff if settings.naming.endpoint else None,
    )
    moved = wiring.step(
        concepts,
        features=called,
        diff=read.diff,
        firings=read.firings,
        sae=source.handle,
        settings=settings.families,
    )
    return {"features": called, "sae_diff": read.diff, "concepts": moved}


def _shown(wiring: Wiring) -> dict[str, Any]:
    """The rows that names are made from, and how they are read."""
    naming = wiring.request.features.naming
    return {
        "model": wiring.model,
        "rows": wiring.rows["train"].subset(naming.rows, "concepts"),
        "heldout": wiring.compared_rows(),
        "settings": naming.read,
    }
