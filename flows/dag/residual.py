"""The residual stream's own change in the DAG: what stands for concepts where there is no SAE."""

from __future__ import annotations

from typing import Any

from foretune.flows.dag.wiring import Wiring
from foretune.tasks.inspection.residual_change import residual_change


def residual_passes(wiring: Wiring, made: dict[str, Any]) -> dict[str, Any]:
    """`residual_change`; nothing where an SAE reads the model, unless the request asks for both."""
    settings = wiring.request.residual_change
    if settings.when == "never" or (settings.when == "without_sae" and wiring.sources.sae is not None):
        return {}
    moved = wiring.step(
        residual_change,
        model=wiring.model,
        checkpoint=made["checkpoint"],
        prediction=made["prediction"],
        rows=wiring.compared_rows(),
        adapter=wiring.request.adapter,
        settings=settings,
    )
    return {"residual_change": moved}
