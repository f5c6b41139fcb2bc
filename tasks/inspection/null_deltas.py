"""What random deltas of the prediction's size do to the held-out rows: the noise that a change is held against."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.handles import ModelHandle, device_lock
from foretune.tasks.inspection.noise import held_figures
from foretune.tasks.inspection.settings import DiffSettings, NullSettings
from foretune.tasks.loading import AdapterSettings, label_caller
from foretune.tasks.samples.minibatches import minibatches
from foretune.tasks.samples.rows import SubsetRows

if TYPE_CHECKING:
    import pyarrow as pa

    from foretune.tasks.loading import LoadedModel


@content_task(version=1)
def null_deltas(
    draft: Any,
    run: Run,
    model: ModelHandle,
    prediction: ArtifactRef,
    rows: SubsetRows,
    adapter: AdapterSettings,
    compared: DiffSettings,
    settings: NullSettings,
) -> None:
    """nulls.parquet: loss change, KL, JS and change of calibration under each random delta, with every module's
    predicted norm and the adapter's rank. Costs a forward pass over the rows per delta, and one at the base weights.
    """
    layers = run.store.open(prediction).arrow("layers.parquet", columns=["module", "norm"]).to_pylist()
    norms = {row["module"]: row["norm"] for row in layers if row["norm"]}
    rank = adapter.r if adapter.method == "lora" else None
    loaded, table = model.open(run), rows.read(run)
    with device_lock(loaded):
        found = null_rows(loaded, table, norms, rank, compared, settings)
    draft.write_table("nulls.parquet", found)
    draft.write_json(
        "summary.json",
        {
            "deltas": len(found),
            "rank": rank,
            "modules": len(norms),
            "norm": sum(norm**2 for norm in norms.values()) ** 0.5,
            "rows": len(table),
        },
    )


def null_rows(
    loaded: LoadedModel,
    table: pa.Table,
    norms: dict[str, float],
    rank: int | None,
    compared: DiffSettings,
    settings: NullSettings,
) -> list[dict[str, float]]:
    """A row per draw, as differences from the base weights, which stay as they are.

    Micro-batches are the outer loop, so that the base logits are taken once and only one delta is held at a time; it
    is drawn again for each, which costs little beside a forward pass.
    """
    import torch

    from foretune.tasks.numerics.comparison import compare_logits, joined, summarise
    from foretune.tasks.numerics.nulls import null_delta

    weights = {name: loaded.weight(name) for name in norms}
    call, batches = label_caller(loaded, norms), minibatches(table, compared.batch_tokens, loaded.device)
    parts: list[list[Any]] = [[] for _ in range(settings.deltas)]
    for minibatch in batches:
        with torch.no_grad():
            base = call({}, minibatch.batch)
            for draw, compared_parts in enumerate(parts):
                delta = null_delta(weights, norms, rank, draw, settings.seed)
                moved = {name: weights[name] + change.to(weights[name].dtype) for name, change in delta.items()}
                compared_parts.append(compare_logits(base, call(moved, minibatch.batch), minibatch.batch.labels))
    found = []
    for draw, each in enumerate(parts):
        tokens, _ = joined(each, [minibatch.rows for minibatch in batches])
        summary = summarise(tokens, compared.ece_bins)
        found.append({"draw": draw, **held_figures(summary)})
    return found
