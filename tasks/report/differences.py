"""The section of the model diff: its tables as they are stored, and which rows and weights they are of."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from foretune.tasks.report.views import ModelDiffView

if TYPE_CHECKING:
    from pandas import DataFrame

    from foretune.tasks.report.request_lines import RequestLines

SETS = {"heldout": "held-out row", "probe": "probe", "chosen": "chosen answer"}


def model_diff_view(opened: dict[str, Any], texts: dict[str, str], lines: RequestLines) -> ModelDiffView:
    diff, names = opened["model_diff"], opened["model_diff"].names()

    def table(name: str) -> DataFrame | None:
        return diff.table(name) if name in names else None

    worst = diff.arrow("worst_tokens.parquet").to_pylist() if "worst_tokens.parquet" in names else []
    summary = flat(diff.json("summary.json"))
    directions = table("directions.parquet")
    return ModelDiffView(
        layers=placed(diff.table("layers.parquet")),
        probes=table("probes.parquet"),
        summary=summary,
        directions=directions if directions is not None and len(directions) else None,
        calibration=table("calibration.parquet"),
        worst=sorted(({**row, "words": SETS[row["set"]]} for row in worst), key=lambda row: -row["kl"]),
        which=_which(opened),
        storage=_storage(summary),
    )


def _which(opened: dict[str, Any]) -> str:
    """Of the same rows the prediction tells the loss too: the figures agree but for float32's rounding."""
    if "prediction" not in opened:
        return ""
    predicted, compared = (opened[name].manifest.inputs for name in ("prediction", "model_diff"))
    if predicted["dpo_beta"] is not None:
        return "; the loss of the prediction is that of pairs"
    if predicted["evaluation"] == compared["rows"]:
        return ", the rows that the prediction is evaluated on"
    return ", not the rows that the prediction is evaluated on (prediction.evaluation_rows, diff.rows)"


def _storage(summary: dict[str, Any]) -> str:
    stored = summary.get("checkpoint_dtype") or "F32"
    if stored in ("F32", "F64"):
        return ""
    return (
        f"The checkpoint stores the changed weights as {stored}, as the base does: these figures are of the rounded "
        "weights, the prediction's own loss is of the weights before that."
    )


def placed(modules: DataFrame) -> DataFrame:
    """Layer number and kind of each module, read from its name; -1 for modules outside the layers."""
    found = [re.search(r"\.(\d+)\.", f".{name}") for name in modules["module"]]
    kinds = [re.sub(r"\.weight$", "", name).rsplit(".", 1)[-1] for name in modules["module"]]
    return modules.assign(layer=[int(m.group(1)) if m else -1 for m in found], kind=kinds)


def flat(summary: dict[str, Any]) -> dict[str, Any]:
    """The numbers and words of a summary, without its lists."""
    return {name: value for name, value in summary.items() if value is None or isinstance(value, int | float | str)}
