"""What an SAE's features do on the label tokens of every sample of a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from foretune.tasks.inputs.handles import device_lock
from foretune.tasks.inspection.settings import DiffSettings
from foretune.tasks.loading.hooks import run_to_hook
from foretune.tasks.samples.minibatches import minibatches, token_masks

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from foretune.tasks.loading import LoadedModel
    from foretune.tasks.saes import LoadedSae


@dataclass(frozen=True)
class SampleActivations:
    """What every sample's label tokens make of the features; divide by `tokens` once."""

    sums: Tensor  # [n, d_sae] float64
    tokens: Tensor  # [n] label tokens, float64
    fired: Tensor  # [d_sae] label tokens with a positive activation, float64
    explained: float  # variance that the SAE reproduces there


def sample_activations(
    loaded: LoadedModel,
    autoencoder: LoadedSae,
    table: pa.Table,
    settings: DiffSettings,
    weights: dict[str, Tensor] | None = None,
) -> SampleActivations:
    """Every sample's activation sums on its label tokens.

    `weights` {parameter name: tensor} stand in for the model's own.
    """
    import torch

    from foretune.tasks.numerics.activations import ReconstructionSums

    sums = torch.zeros(len(table), autoencoder.d_sae, dtype=torch.float64)
    tokens = torch.zeros(len(table), dtype=torch.float64)
    fired = torch.zeros(autoencoder.d_sae, dtype=torch.float64)
    quality = ReconstructionSums()
    for minibatch in minibatches(table, settings.batch_tokens, loaded.device):
        _, trained = token_masks(minibatch.batch)
        with device_lock(loaded), torch.no_grad():
            resid = run_to_hook(loaded, minibatch.batch, autoencoder.hook_name, weights)
            for position, row in enumerate(minibatch.rows):
                chosen = resid[position][trained[position]]
                acts = autoencoder.encode(chosen)
                sums[row] = acts.sum(dim=0, dtype=torch.float64).cpu()
                tokens[row] = chosen.shape[0]
                fired += (acts > 0).sum(dim=0).cpu()
                quality.add(autoencoder.target(chosen), autoencoder.decode(acts))
    return SampleActivations(sums, tokens, fired, quality.explained_variance)
