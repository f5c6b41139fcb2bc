"""What influence is measured on: held-out loss, single held-out rows, groups of them, a margin, a concept or a suite.

Every target is a gradient in adapter coordinates; the first one ranks the samples, the others share its passes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.adapted import space_of
from foretune.tasks.inputs.factors import GRADIENTS, RECORD, GradientFile, mean_gradients
from foretune.tasks.inputs.field import per_row_gradients
from foretune.tasks.inputs.sample_values import SampleValues
from foretune.tasks.loading import AdapterSettings, lora_scale
from foretune.tasks.samples.shards import Subset

if TYPE_CHECKING:
    from torch import Tensor


class TargetSettings(BaseModel):
    """What a sample's score is the change of."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="Target")

    version: Literal[1] = 1
    of: Literal["heldout", "margin", "feature", "suite"] = Field(
        default="heldout",
        title="Target",
        description="heldout: mean held-out loss; margin: of the preference pairs; feature: mean activation of an "
        "SAE feature on held-out label tokens; suite: mean margin of a behaviour suite",
    )
    feature: Annotated[int, Field(ge=0, le=10**9)] | str | None = Field(
        default=None, title="Feature", description="number, or a label or part of one"
    )
    suite: str | None = Field(default=None, title="Suite", description="bundled, or one of behaviour.suites")
    item: str | None = Field(default=None, title="Item", description="of that suite, alone")
    rows: int = Field(
        default=24,
        ge=0,
        le=1_000_000,
        title="Held-out rows scored apart",
        description="chosen by id; LoRA with rows kept one by one",
    )

    @model_validator(mode="after")
    def _feature_is_named(self) -> TargetSettings:
        if (self.of == "feature") != (self.feature is not None):
            raise ValueError("target.of: feature and target.feature go together; give both or neither")
        if (self.of == "suite") != (self.suite is not None):
            raise ValueError("target.of: suite and target.suite go together; give both or neither")
        if self.item is not None and self.suite is None:
            raise ValueError("target.item is an item of target.suite; give that too")
        return self


@content_task(version=1)
def influence_targets(
    draft: Any,
    run: Run,
    gradient: ArtifactRef,
    nodes: list[ArtifactRef],
    samples: ArtifactRef,
    rows: Subset,
    adapter: AdapterSettings,
    seed: int,
    dtype: str,
    watched: list[ArtifactRef] | None = None,
) -> None:
    """targets.safetensors: {module: [targets, ...]} gradients in adapter coordinates; targets.json: what they are.

    `gradient` is the first target's. Held-out rows and groups of them follow where the blocks `nodes` have
    per-row gradients; `rows` are those that are targets on their own. Last come the suites `watched`.
    """
    import torch

    opened = run.store.open(gradient)
    first: dict[str, Any] = mean_gradients(opened)
    record = opened.json("target.json" if "target.json" in opened.names() else "counts.json")
    names, described = record["modules"], [_first_target(record)]
    kept = per_row_gradients(run, nodes, lora_scale(adapter)) if adapter.method == "lora" else None
    weights = torch.zeros(0, 0)
    if kept is not None:
        weights, further = _shares(run, samples, rows, kept.ids, kept.tokens)
        described += further
    suites = [run.store.open(suite) for suite in watched or []]
    described += [_first_target(suite.json("target.json")) | {"watched": True} for suite in suites]
    of_suites = [GradientFile(suite, GRADIENTS, suite.json("target.json").get(RECORD), names) for suite in suites]
    space = space_of({name: tuple(first[name].shape) for name in names}, adapter, seed, getattr(torch, dtype))

    def pulled(full: Any, name: str) -> Tensor:
        return space.pull({name: full.float()})[name].unsqueeze(0)

    stacked = {}
    for name in names:
        main = pulled(first[name], name)
        further = [] if kept is None else [(weights @ kept.block(name)).view(-1, *main.shape[1:])]
        further += [pulled(suite.read(name), name) for suite in of_suites]
        stacked[name] = torch.cat([main, *further]).contiguous()
    draft.write_tensors("targets.safetensors", stacked)
    draft.write_json("targets.json", described)


def _first_target(record: dict[str, Any]) -> dict[str, Any]:
    """The ranking target: `better` says which way is good, None where neither is."""
    if "name" not in record:
        return {"name": "held-out loss", "kind": "heldout", "unit": "nats per token", "better": "lower"}
    if record.get("kind") == "suite":
        return {name: record[name] for name in ("name", "kind", "suite", "unit", "better", "value", "items")}
    of_feature = "feature" in record
    known = {name: record[name] for name in ("name", "unit", "feature") if name in record}
    return {**known, "kind": "feature" if of_feature else "margin", "better": None if of_feature else "higher"}


def _shares(
    run: Run, samples: ArtifactRef, rows: Subset, ids: list[str], tokens: list[float]
) -> tuple[Tensor, list[dict[str, Any]]]:
    """[targets, n] weight of each held-out row's summed loss in every further target, and what these are."""
    import torch

    columns = ["sample_id", "row", "group"]
    table = {row["sample_id"]: row for row in run.store.open(samples).arrow("samples.parquet", columns).to_pylist()}
    tokens_of = dict(zip(ids, tokens, strict=True))
    members: list[tuple[dict[str, Any], list[str]]] = [
        ({"name": f"held-out row {table[i]['row']}", "kind": "row", "row": table[i]["row"]}, [i])
        for i in sorted(rows.ids, key=lambda i: table[i]["row"])
        if i in tokens_of
    ]
    groups = sorted({table[i]["group"] for i in ids} - {None})
    members += [
        ({"name": group, "kind": "group", "group": group}, [i for i in ids if table[i]["group"] == group])
        for group in groups
    ]
    shares = torch.zeros(len(members), len(ids))
    for target, (_, chosen) in enumerate(members):
        share = torch.full((len(chosen),), 1.0 / sum(tokens_of[i] for i in chosen))
        shares[target] = SampleValues(chosen, share).spread_over(ids)
    return shares, [{**described, "unit": "nats per token", "better": "lower"} for described, _ in members]
