"""The same frozen SAE on the base model and on the predicted checkpoint: what each concept really does there."""

from __future__ import annotations

from typing import Any

from storage.artifacts import ArtifactRef
from storage.runs import Run
from tasks.differences import DiffSettings
from tasks.hooks import run_to_hook
from tasks.keys import NUMERICS, content_task
from tasks.minibatches import minibatches, token_masks
from tasks.model import ModelHandle, SaeHandle
from tasks.rows import SubsetRows


@content_task(version=1, libraries=(*NUMERICS, "sae-lens"))
def sae_diff(
    draft: Any,
    run: Run,
    model: ModelHandle,
    checkpoint: ArtifactRef,
    sae: SaeHandle,
    rows: SubsetRows,
    settings: DiffSettings,
) -> None:
    """Per feature: mean activation under both models on held-out label tokens, change and its z-score."""
    import pyarrow as pa

    from tasks.numerics.activations import paired_change

    autoencoder, table = sae.open(), rows.read(run)
    sums, tokens, explained = {}, None, {}
    for name, handle in (("base", model), ("new", model.moved_to(checkpoint))):
        sums[name], tokens, explained[name] = sample_activations(handle.open(run), autoencoder, table, settings)
    result = paired_change(sums["base"], sums["new"], tokens)
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
            "explained_variance_base": explained["base"],
            "explained_variance_new": explained["new"],
            "features_moved": int((result.z.abs() > 3).sum()),
        },
    )


def sample_activations(loaded: Any, autoencoder: Any, table: Any, settings: DiffSettings) -> tuple[Any, Any, float]:
    """Activation sums per sample [n, d_sae], label tokens per sample [n], explained variance on them."""
    import torch

    from tasks.numerics.activations import ReconstructionSums

    sums = torch.zeros(len(table), autoencoder.d_sae, dtype=torch.float64)
    tokens = torch.zeros(len(table), dtype=torch.float64)
    quality = ReconstructionSums()
    for minibatch in minibatches(table, settings.batch_tokens, loaded.device):
        _, trained = token_masks(minibatch.batch)
        with torch.no_grad():
            resid = run_to_hook(loaded, minibatch.batch, autoencoder.hook_name)
            for position, row in enumerate(minibatch.rows):
                chosen = resid[position][trained[position]]
                acts = autoencoder.encode(chosen)
                sums[row] = acts.sum(dim=0, dtype=torch.float64).cpu()
                tokens[row] = chosen.shape[0]
                quality.add(autoencoder.target(chosen), autoencoder.decode(acts))
    return sums, tokens, quality.explained_variance
