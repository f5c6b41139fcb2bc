"""Pass 1: what the base model's concepts do on this data before anything is trained. Forward only."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.keys import NUMERICS, without_result
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.handles import ModelHandle, SaeHandle, device_lock
from foretune.tasks.loading.hooks import run_to_hook
from foretune.tasks.samples.minibatches import minibatches, token_masks
from foretune.tasks.samples.rows import ShardRows


class BaselineSettings(BaseModel):
    """How the forward pass to the SAE's layer is run."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="Baseline")

    version: Literal[1] = 1
    batch_tokens: int = Field(
        default=4096,
        ge=1,
        le=10**8,
        title="Tokens per micro-batch",
        description="padding included",
        json_schema_extra=without_result(),
    )


@content_task(version=1, libraries=(*NUMERICS, "sae-lens"))
def baseline_shard(
    draft: Any,
    run: Run,
    rows: ShardRows,
    model: ModelHandle,
    sae: SaeHandle,
    settings: BaselineSettings,
) -> None:
    """Feature sums of one shard, over completion tokens and over all tokens but each row's first.

    The first position is left out everywhere: it is the attention sink, its norm is an outlier, and SAEs are
    trained without it.
    """
    import torch

    from foretune.tasks.numerics.activations import FeatureSums, ReconstructionSums

    loaded, autoencoder = model.open(run), sae.open()
    completion, everything = FeatureSums.zeros(autoencoder.d_sae), FeatureSums.zeros(autoencoder.d_sae)
    quality = ReconstructionSums()
    table = rows.read(run)
    for minibatch in minibatches(table, settings.batch_tokens, loaded.device, trained_only=False):
        seen, trained = token_masks(minibatch.batch)
        with device_lock(loaded), torch.no_grad():
            resid = run_to_hook(loaded, minibatch.batch, autoencoder.hook_name)[seen]
            acts = autoencoder.encode(resid)
            reconstruction = autoencoder.decode(acts)
        everything.add(acts)
        completion.add(acts[trained[seen]])
        quality.add(autoencoder.target(resid), reconstruction)
    draft.write_tensors(
        "sums.safetensors",
        {
            "act_sum": completion.act_sum,
            "fired": completion.fired,
            "act_sum_all": everything.act_sum,
            "fired_all": everything.fired,
            "resid_sum": torch.as_tensor(quality.total),
        },
    )
    draft.write_json(
        "counts.json",
        {
            "tokens": completion.tokens,
            "tokens_all": everything.tokens,
            "error": quality.error,
            "square": quality.square,
        },
    )


@content_task(version=1, libraries=("torch",))
def baseline(draft: Any, run: Run, shards: list[ArtifactRef]) -> None:
    """base_acts_mean [n_features] and firing rates: shard sums added, divided once."""
    import pyarrow as pa

    from foretune.tasks.numerics.activations import FeatureSums, ReconstructionSums

    sums: Any = None
    everything: Any = None
    quality = ReconstructionSums()
    for shard in shards:
        opened = run.store.open(shard)
        tensors, counts = opened.tensors("sums.safetensors"), opened.json("counts.json")
        part = FeatureSums(tensors["act_sum"], tensors["fired"], counts["tokens"])
        part_all = FeatureSums(tensors["act_sum_all"], tensors["fired_all"], counts["tokens_all"])
        sums, everything = _merged(sums, part), _merged(everything, part_all)
        quality = ReconstructionSums(
            quality.error + counts["error"],
            quality.square + counts["square"],
            quality.total + tensors["resid_sum"],
            quality.tokens + counts["tokens_all"],
        )
    draft.write_tensors(
        "baseline.safetensors",
        {
            "base_acts_mean": sums.mean.float(),
            "firing_rate": sums.firing_rate.float(),
            "base_acts_mean_all": everything.mean.float(),
            "firing_rate_all": everything.firing_rate.float(),
        },
    )
    count = sums.mean.numel()
    draft.write_table(
        "features.parquet",
        pa.table(
            {
                "feature": list(range(count)),
                "base_act": sums.mean.numpy(),
                "firing_rate": sums.firing_rate.numpy(),
                "base_act_all": everything.mean.numpy(),
                "firing_rate_all": everything.firing_rate.numpy(),
            }
        ),
    )
    draft.write_json(
        "summary.json",
        {
            "n_features": count,
            "active_features": int((sums.fired > 0).sum()),
            "tokens": sums.tokens,
            "tokens_all": everything.tokens,
            "explained_variance": quality.explained_variance,
            "l0": float(everything.firing_rate.sum()),
        },
    )


def _merged(total: Any, part: Any) -> Any:
    if total is None:
        return part
    total.merge(part)
    return total
