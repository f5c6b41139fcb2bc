"""The same frozen SAE on the base model and on the predicted checkpoint: what each concept really does there."""

from __future__ import annotations

from typing import Any

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.keys import NUMERICS
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.handles import ModelHandle, SaeHandle
from foretune.tasks.inspection.activations import sample_activations
from foretune.tasks.inspection.settings import DiffSettings
from foretune.tasks.samples.rows import SubsetRows


@content_task(version=2, libraries=(*NUMERICS, "sae-lens"))
def sae_diff(
    draft: Any,
    run: Run,
    model: ModelHandle,
    checkpoint: ArtifactRef,
    base: ArtifactRef,
    sae: SaeHandle,
    rows: SubsetRows,
    settings: DiffSettings,
) -> None:
    """Per feature: mean activation under both models on held-out label tokens, change and its z-score."""
    import pyarrow as pa

    from foretune.tasks.numerics.activations import paired_change

    autoencoder, table = sae.open(), rows.read(run)
    stored = run.store.open(base)
    before, explained = stored.tensors("sums.safetensors"), stored.json("summary.json")["explained_variance"]
    new = model.moved_to(checkpoint).open(run)
    sums, tokens, explained_new = sample_activations(new, autoencoder, table, settings)
    result = paired_change(before["sums"], sums, tokens)
    draft.write_table(
        "features.parquet",
        pa.table(
            {
                "feature": list(range(autoencoder.d_sae)),
                "base": result.base.numpy(),
                "new": result.new.numpy(),
                "change": result.change.numpy(),
                "z": result.z.numpy(),
            }
        ),
    )
    draft.write_json(
        "summary.json",
        {
            "rows": len(table),
            "tokens": float(tokens.sum()),
            "explained_variance_base": explained,
            "explained_variance_new": explained_new,
            "features_moved": int((result.z.abs() > 3).sum()),
        },
    )
