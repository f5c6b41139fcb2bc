"""What the features of one or more SAEs do on the label tokens of every sample of a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from foretune.tasks.inputs.handles import device_lock
from foretune.tasks.inspection.settings import DiffSettings
from foretune.tasks.loading.hooks import run_to_hooks
from foretune.tasks.samples.minibatches import minibatches, token_masks

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    autoencoders: Sequence[LoadedSae],
    table: pa.Table,
    settings: DiffSettings,
    weights: dict[str, Tensor] | None = None,
) -> list[SampleActivations]:
    """Every sample's activation sums on its label tokens, of each SAE in order; one forward serves all.

    `weights` {parameter name: tensor} stand in for the model's own.
    """
    import torch

    sums = [_Sums(autoencoder, len(table)) for autoencoder in autoencoders]
    hooks = [autoencoder.hook_name for autoencoder in autoencoders]
    for minibatch in minibatches(table, settings.batch_tokens, loaded.device):
        _, trained = token_masks(minibatch.batch)
        with device_lock(loaded), torch.no_grad():
            at = run_to_hooks(loaded, minibatch.batch, hooks, weights)
            for each in sums:
                for position, row in enumerate(minibatch.rows):
                    each.add(row, at[each.autoencoder.hook_name][position][trained[position]])
    return [each.result() for each in sums]


class _Sums:
    """Of one SAE, row after row."""

    def __init__(self, autoencoder: LoadedSae, rows: int) -> None:
        import torch

        from foretune.tasks.numerics.activations import ReconstructionSums

        self.autoencoder, self.quality = autoencoder, ReconstructionSums()
        self.sums = torch.zeros(rows, autoencoder.d_sae, dtype=torch.float64)
        self.tokens = torch.zeros(rows, dtype=torch.float64)
        self.fired = torch.zeros(autoencoder.d_sae, dtype=torch.float64)

    def add(self, row: int, chosen: Tensor) -> None:
        """A row's activations of the model on its label tokens [t, d]."""
        import torch

        acts = self.autoencoder.encode(chosen)
        self.sums[row] = acts.sum(dim=0, dtype=torch.float64).cpu()
        self.tokens[row] = chosen.shape[0]
        self.fired += (acts > 0).sum(dim=0).cpu()
        self.quality.add(self.autoencoder.target(chosen), self.autoencoder.decode(acts))

    def result(self) -> SampleActivations:
        return SampleActivations(self.sums, self.tokens, self.fired, self.quality.explained_variance)
