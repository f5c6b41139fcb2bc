"""What a training step minimises, per sample: token cross-entropy (SFT) or the preference loss (DPO)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from foretune.tasks.numerics.batches import Batch
from foretune.tasks.numerics.losses import SampleLosses, preference_losses, sample_losses, sequence_logprobs

Call = Callable[[dict[str, Tensor], Batch], Tensor]  # (weights, batch) -> logits, [b, s, vocab] or at labels [n, vocab]


@dataclass(frozen=True)
class Objective:
    """Sum of losses and their weight per sample, so that a mean over any set is sum over sum.

    SFT weighs a sample by its label tokens, DPO every pair by one. `dpo_beta` is None for SFT.
    """

    dpo_beta: float | None = None

    def losses(
        self,
        call: Call,
        weights: dict[str, Tensor],
        batch: Batch,
        rejected: Batch | None,
        reference: tuple[Tensor, Tensor] | None = None,
    ) -> SampleLosses:
        """Losses of one micro-batch in nats; `reference` holds the base model's (chosen, rejected)
        log-probabilities [b] and defaults to the policy's own, which is exact at the base weights."""
        logits = call(weights, batch)
        if self.dpo_beta is None or rejected is None:
            return sample_losses(logits, batch.labels)
        chosen_logp = sequence_logprobs(logits, batch.labels)
        rejected_logp = sequence_logprobs(call(weights, rejected), rejected.labels)
        base_chosen, base_rejected = reference or (chosen_logp.detach(), rejected_logp.detach())
        losses = preference_losses(chosen_logp, rejected_logp, base_chosen, base_rejected, self.dpo_beta)
        return SampleLosses(losses, torch.ones_like(losses))
