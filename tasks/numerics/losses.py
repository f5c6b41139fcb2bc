"""Token losses in nats, and what is built on them: sample losses, sequence log-probabilities, DPO."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from foretune.tasks.numerics.batches import IGNORED


def label_positions(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns [n], [n] of the logits that predict a label; column j predicts token j + 1."""
    rows, cols = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    return rows, cols


def label_logits(logits: Tensor, labels: Tensor) -> Tensor:
    """[n, V] at least float32: only the rows of the logits [b, s, V] that a loss reads.

    Logits [n, V] are taken to be these rows already, in the order of `label_positions`.
    """
    gathered = logits if logits.ndim == 2 else logits[label_positions(labels)]
    return gathered if gathered.dtype == torch.float64 else gathered.float()


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """[b, s-1] nats: cross entropy of token j + 1 at column j, exactly 0 where there is no label.

    Label positions are gathered before the log-softmax, so masked prompt tokens cost no float32 copy.
    """
    rows, cols = label_positions(labels)
    read = label_logits(logits, labels)
    target = labels[rows, cols + 1]
    nats = read.logsumexp(-1) - read.gather(-1, target[:, None]).squeeze(-1)
    return nats.new_zeros(labels.shape[0], labels.shape[1] - 1).index_put((rows, cols), nats)


@dataclass(frozen=True)
class SampleLosses:
    loss_sum: Tensor  # [b] nats, summed over the sample's label tokens
    tokens: Tensor  # [b] long


def sample_losses(logits: Tensor, labels: Tensor) -> SampleLosses:
    """Sums per row; divide once, after all rows that belong to a mean are added up."""
    return SampleLosses(token_losses(logits, labels).sum(-1), (labels[:, 1:] != IGNORED).sum(-1))


def sequence_logprobs(logits: Tensor, labels: Tensor) -> Tensor:
    """[b] nats: log-probability of each row's label tokens."""
    return -sample_losses(logits, labels).loss_sum


def preference_losses(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float = 0.1,
) -> Tensor:
    """[b] nats: the sigmoid DPO loss of each pair (Rafailov et al. 2023, equation 7).

    Arguments are summed log-probabilities [b]. At the reference the loss is ln 2 for every pair.
    """
    return -logsigmoid(beta * ((policy_chosen - ref_chosen) - (policy_rejected - ref_rejected)))


@dataclass(frozen=True)
class Margins:
    """Chosen minus rejected, [b] each; negative means that the model prefers the rejected answer."""

    raw: Tensor  # nats, of summed log-probabilities
    per_token: Tensor  # nats per token, each answer divided by its own length
    reference: Tensor  # nats, policy minus reference: 0 at the base weights


def margins(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    tokens_chosen: Tensor,
    tokens_rejected: Tensor,
) -> Margins:
    """The three margins that are in use; log-probabilities summed, [b], and label tokens [b].

    An answer without label tokens has per-token margin nan.
    """
    raw = policy_chosen - policy_rejected
    per_token = policy_chosen / tokens_chosen - policy_rejected / tokens_rejected
    return Margins(raw, per_token, raw - (ref_chosen - ref_rejected))
