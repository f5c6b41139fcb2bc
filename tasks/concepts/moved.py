"""Which concepts move, by what the predicted checkpoint shows: families in the order of their measured change.

The score and the tangent are estimators of that change: how far they agree with it is told beside.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.keys import NUMERICS
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.concepts import FamilySettings
from foretune.tasks.inputs.handles import SaeHandle

if TYPE_CHECKING:
    from pandas import DataFrame

MOST_GROUPED = 500
"""Features that are compared with each other: what is weaker stands by itself."""
STRENGTHENED, FADED, NOISE = "strengthened", "faded", "not beyond noise"


@content_task(version=1, libraries=(*NUMERICS, "sae-lens"))
def concepts(
    draft: Any,
    run: Run,
    features: ArtifactRef,
    diff: ArtifactRef,
    firings: ArtifactRef,
    sae: SaeHandle,
    settings: FamilySettings,
) -> None:
    """concepts.parquet: every feature with what was measured of it, what was estimated and its family, in order."""
    measured = run.store.open(diff).table("features.parquet")
    named = run.store.open(features).table("features.parquet").drop(columns=["base_act"])
    table = measured.merge(named, on="feature")
    table = table.assign(verdict=verdicts(table), relative=table["change"] / table["base"].where(table["base"] != 0))
    # What moved comes first, then what only seems to; the largest change first in either.
    order = table.assign(still=~table["beyond_noise"], size=-table["change"].abs())
    table = table.loc[order.sort_values(["still", "size", "feature"], kind="stable").index].reset_index(drop=True)
    fired = run.store.open(firings).table("firings.parquet", columns=["token", "feature"])
    leaders = leading_features(table, fired, sae.open().W_dec, settings)
    members = leaders.map(leaders.value_counts())
    draft.write_table("concepts.parquet", table.assign(family=leaders, members=members))
    draft.write_json("summary.json", summary_of(table.assign(family=leaders)))


def verdicts(table: DataFrame) -> list[str]:
    """strengthened, faded, or not beyond noise: nothing is said to move that its noise could have moved."""
    return [
        NOISE if not beyond else STRENGTHENED if change > 0 else FADED
        for change, beyond in zip(table["change"], table["beyond_noise"], strict=True)
    ]


def leading_features(table: DataFrame, fired: DataFrame, directions: Any, settings: FamilySettings) -> Any:
    """Of every feature the one that leads its family; itself where it does not move."""
    import torch

    from foretune.tasks.numerics.families import cofiring, families

    moved = table[table["beyond_noise"]].head(MOST_GROUPED)
    if moved.empty:
        return table["feature"]
    numbers = moved["feature"].tolist()
    by_feature = {int(str(number)): group for number, group in fired[fired["feature"].isin(numbers)].groupby("feature")}
    tokens = [
        torch.as_tensor(by_feature[number]["token"].to_numpy(copy=True) if number in by_feature else [])
        for number in numbers
    ]
    change = torch.as_tensor(moved["change"].to_numpy(copy=True))
    found = families(directions[numbers].detach().cpu(), cofiring(tokens), change, settings.cosine, settings.cofiring)
    leaders = table["feature"].copy()
    leaders.loc[moved.index] = [numbers[place] for place in found]
    return leaders


def summary_of(table: DataFrame) -> dict[str, Any]:
    """How many move, in how many families, and how the two estimators agree with what was measured."""
    leads = table["feature"] == table["family"]
    counted = {
        f"{what}_{verdict}": int(((table["verdict"] == verdict) & chosen).sum())
        for verdict in (STRENGTHENED, FADED)
        for what, chosen in (("features", table["change"].notna()), ("concepts", leads))
    }
    fires = (table["fires_base"] > 0) | (table["fires_new"] > 0)
    counted["features_within_noise"] = int((fires & ~table["beyond_noise"]).sum())
    return counted | agreement(table[fires], "score") | agreement(table[fires], "predicted_change")


def agreement(table: DataFrame, estimator: str) -> dict[str, float | None]:
    """Spearman over all features that fire; the share of right signs among those that move beyond noise."""
    import torch

    from foretune.tasks.numerics.agreement import spearman

    name = "tangent" if estimator == "predicted_change" else estimator
    if table[estimator].isna().all():  # of an SAE at whose hook no gradient is taken
        return {f"{name}_spearman": None, f"{name}_signs": None}
    moved = table[table["beyond_noise"]]
    right = float((moved[estimator] * moved["change"] > 0).mean()) if len(moved) else None
    columns = (torch.as_tensor(table[name].to_numpy(dtype=float).copy()) for name in (estimator, "change"))
    rank = spearman(*columns) if len(table) > 1 else math.nan
    return {f"{name}_spearman": rank if math.isfinite(rank) else None, f"{name}_signs": right}
