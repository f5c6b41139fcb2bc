"""Which named concepts the data would strengthen or suppress: landscape x baseline, and the predicted change.

`score` is first order in an infinitesimal descent step and needs no model pass. `predicted_change` follows the
predicted weight delta: the residual stream's derivative along it, read by the SAE's own encoder, so that a
feature that is silent in the base model can appear ("dormant but moving").
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.keys import NUMERICS, Fingerprint, without_result
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.handles import ModelHandle, SaeHandle, device_lock
from foretune.tasks.loading.hooks import run_to_hook
from foretune.tasks.saes import feature_labels
from foretune.tasks.samples.minibatches import minibatches, token_masks
from foretune.tasks.samples.rows import SubsetRows


class FeatureSettings(BaseModel):
    """How features are scored and named."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="Features")

    version: Literal[1] = 1
    top: int = Field(
        default=20,
        ge=1,
        le=100_000,
        title="Features listed",
        description="in result.json, per direction",
        json_schema_extra=without_result(),
    )
    step: float = Field(default=0.02, gt=0, le=1, title="Difference step", description="share of the predicted delta")
    batch_tokens: int = Field(
        default=2048, ge=1, le=10**8, title="Tokens per micro-batch", json_schema_extra=without_result()
    )


@content_task(version=1, libraries=(*NUMERICS, "sae-lens"))
def feature_scores(
    draft: Any,
    run: Run,
    gradient: ArtifactRef,
    baseline: ArtifactRef,
    prediction: ArtifactRef,
    rows: SubsetRows,
    model: ModelHandle,
    sae: SaeHandle,
    settings: FeatureSettings,
) -> None:
    """The seed's score with descent's sign and the tangent along the predicted delta, of features by number."""
    import pyarrow as pa

    from foretune.tasks.numerics import features as numerics

    loaded, autoencoder = model.open(run), sae.open()
    base_acts = run.store.open(baseline).tensors("baseline.safetensors")["base_acts_mean"]
    residual = run.store.open(gradient).tensors("gradients.safetensors")["resid_grad_mean"]
    scores = numerics.feature_scores(residual, autoencoder.W_dec, base_acts)
    delta = run.store.open(prediction).tensors("delta.safetensors")
    table = rows.read(run)
    with device_lock(loaded):
        predicted = tangent_changes(loaded, autoencoder, delta, table, settings)
    direction = ["strengthened" if s > 0 else "suppressed" if s < 0 else "unchanged" for s in scores.score.tolist()]
    draft.write_table(
        "features.parquet",
        pa.table(
            {
                "feature": list(range(autoencoder.d_sae)),
                "base_act": base_acts.numpy(),
                "score": scores.score.numpy(),
                "predicted_change": predicted.numpy(),
                "direction": direction,
                "dormant": scores.dormant.numpy(),
                "agrees": ((scores.score * predicted) >= 0).numpy(),
            }
        ),
    )


@content_task(version=1, libraries=(*NUMERICS, "sae-lens"))
def features(
    draft: Any,
    run: Run,
    scores: ArtifactRef,
    model: ModelHandle,
    sae: SaeHandle,
    labels: Fingerprint | None,
) -> None:
    """The scores with a name for every feature; other names change no number."""
    named = feature_labels(sae.settings, sae.open(), model.open(run), labels.uri if labels else None)
    table = run.store.open(scores).arrow("features.parquet")
    draft.write_table("features.parquet", table.add_column(1, "label", [named]))


def tangent_changes(loaded: Any, autoencoder: Any, delta: dict[str, Any], table: Any, settings: FeatureSettings) -> Any:
    """Mean over label tokens of encode(h + dh) - encode(h), dh the derivative of the residual along `delta`.

    dh is the central difference (h(W + e d) - h(W - e d)) / 2e, two forwards that stop at the hook. [d_sae]
    """
    import torch

    base = {name: loaded.weight(name) for name in delta}
    delta = {name: change.to(loaded.device, base[name].dtype) for name, change in delta.items()}
    total, tokens = torch.zeros(autoencoder.d_sae, dtype=torch.float64), 0
    for minibatch in minibatches(table, settings.batch_tokens, loaded.device):
        _, trained = token_masks(minibatch.batch)
        with torch.no_grad():
            at = {
                sign: run_to_hook(
                    loaded,
                    minibatch.batch,
                    autoencoder.hook_name,
                    {n: w + sign * settings.step * delta[n] for n, w in base.items()},
                )[trained]
                for sign in (0.0, 1.0, -1.0)
            }
            moved = at[0.0] + (at[1.0] - at[-1.0]) / (2 * settings.step)
            change = autoencoder.encode(moved) - autoencoder.encode(at[0.0])
        total += change.sum(dim=0, dtype=torch.float64).cpu()
        tokens += change.shape[0]
    return (total / max(tokens, 1)).float()
