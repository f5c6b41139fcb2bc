"""What random deltas of the prediction's size do to every feature: noise that a concept's change is held against."""

from __future__ import annotations

from typing import Any

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.keys import NUMERICS
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.concepts import FeatureNullSettings
from foretune.tasks.inputs.handles import ModelHandle, SaeHandle, device_lock
from foretune.tasks.inspection.activations import sample_activations
from foretune.tasks.inspection.settings import DiffSettings
from foretune.tasks.loading import AdapterSettings
from foretune.tasks.samples.rows import SubsetRows


@content_task(version=1, libraries=(*NUMERICS, "sae-lens"))
def sae_nulls(
    draft: Any,
    run: Run,
    model: ModelHandle,
    prediction: ArtifactRef,
    base: ArtifactRef,
    sae: SaeHandle,
    rows: SubsetRows,
    adapter: AdapterSettings,
    compared: DiffSettings,
    settings: FeatureNullSettings,
) -> None:
    """nulls.safetensors: change [draws, d_sae] of the mean activation on label tokens, its standard error over rows.

    Of the rows compared the first `settings.rows`, which are a sample: rows are ordered by digests. Costs a forward
    to the SAE's layer per row and draw; the base weights' side is that of `sae_base`.
    """
    import torch

    from foretune.tasks.numerics.activations import paired_change
    from foretune.tasks.numerics.nulls import null_delta

    layers = run.store.open(prediction).arrow("layers.parquet", columns=["module", "norm"]).to_pylist()
    norms = {row["module"]: row["norm"] for row in layers if row["norm"]}
    rank = adapter.r if adapter.method == "lora" else None
    loaded, autoencoder = model.open(run), sae.open()
    table = rows.read(run).slice(0, settings.rows)
    before = run.store.open(base).tensors("sums.safetensors")["sums"][: len(table)]
    weights = {name: loaded.weight(name) for name in norms}
    changes, errors, tokens = [], [], torch.zeros(())
    with device_lock(loaded):
        for draw in range(settings.draws):
            delta = null_delta(weights, norms, rank, draw, settings.seed)
            moved = {name: weights[name] + change.to(weights[name].dtype) for name, change in delta.items()}
            after = sample_activations(loaded, autoencoder, table, compared, moved)
            found, tokens = paired_change(before, after.sums, after.tokens), after.tokens
            changes.append(found.change.float())
            errors.append(found.error.float())
    draft.write_tensors("nulls.safetensors", {"change": torch.stack(changes), "error": torch.stack(errors)})
    draft.write_json(
        "summary.json",
        {"deltas": settings.draws, "rank": rank, "rows": len(table), "tokens": float(tokens.sum())},
    )
