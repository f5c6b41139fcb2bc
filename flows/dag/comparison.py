"""The comparison of base and predicted model in the DAG: null deltas, and the model diff that is held against them."""

from __future__ import annotations

from typing import Any

from foretune.flows.dag.wiring import Wiring
from foretune.tasks.inspection.model_diff import model_diff
from foretune.tasks.inspection.null_deltas import null_deltas


def comparison(wiring: Wiring, made: dict[str, Any]) -> dict[str, Any]:
    """The model diff, and the null deltas where the request asks for some."""
    request, step = wiring.request, wiring.step
    paired = wiring.rows["heldout"].index.form == "preference"
    compared = wiring.compared_rows()
    nulls: dict[str, Any] = {}
    if request.diff.nulls.deltas:
        few = request.diff.nulls.rows_of(compared.subset.rows)
        nulls["null_deltas"] = step(
            null_deltas,
            model=wiring.model,
            rows=wiring.rows["heldout"].subset(few, "diff"),  # the first of those that are compared
            prediction=made["prediction"],
            adapter=request.adapter,
            compared=request.diff.compared,
            settings=request.diff.nulls,
        )
    diff = step(
        model_diff,
        model=wiring.model,
        rows=compared,
        checkpoint=made["checkpoint"],
        probes=wiring.tables.get("probes"),
        pairs=wiring.some_pairs("heldout" if paired else None),
        nulls=nulls.get("null_deltas"),
        settings=request.diff,
    )
    return {**nulls, "model_diff": diff}
