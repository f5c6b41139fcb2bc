"""Two models on the same label tokens: losses, token KL, confidence. Sums per sample, divided once."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from foretune.tasks.numerics.calibration import expected_calibration_error
from foretune.tasks.numerics.losses import label_logits, label_positions


@dataclass(frozen=True)
class SampleComparison:
    """Per sample of a set, and per label token for the calibration."""

    loss_base: Tensor  # [n] nats, summed over label tokens
    loss_new: Tensor  # [n]
    kl: Tensor  # [n] nats, KL(base || new) summed over label tokens
    tokens: Tensor  # [n]
    confidence: tuple[Tensor, Tensor]  # (base, new), each [total tokens]: largest next-token probability
    correct: tuple[Tensor, Tensor]  # (base, new), each [total tokens]: 1.0 where that token came


def compare_logits(base: Tensor, new: Tensor, labels: Tensor) -> SampleComparison:
    """Comparison of one micro-batch from two logits [b, s, vocab] and labels [b, s]."""
    rows, cols = label_positions(labels)
    target = labels[rows, cols + 1]
    log_p = label_logits(base, labels).log_softmax(-1)
    log_q = label_logits(new, labels).log_softmax(-1)
    b = labels.shape[0]

    def per_sample(values: Tensor) -> Tensor:
        return torch.zeros(b, dtype=torch.float64, device=values.device).index_add(0, rows, values.double()).cpu()

    confidence, correct = [], []
    for log_probabilities in (log_p, log_q):
        top = log_probabilities.max(-1)
        confidence.append(top.values.exp().cpu())
        correct.append((top.indices == target).float().cpu())
    return SampleComparison(
        loss_base=per_sample(-log_p.gather(-1, target[:, None]).squeeze(-1)),
        loss_new=per_sample(-log_q.gather(-1, target[:, None]).squeeze(-1)),
        kl=per_sample((log_p.exp() * (log_p - log_q)).sum(-1)),
        tokens=per_sample(torch.ones_like(rows, dtype=torch.float64)),
        confidence=(confidence[0], confidence[1]),
        correct=(correct[0], correct[1]),
    )


def joined(parts: list[SampleComparison]) -> SampleComparison:
    """Micro-batches one after another."""
    return SampleComparison(
        *(torch.cat([getattr(part, name) for part in parts]) for name in ("loss_base", "loss_new", "kl", "tokens")),
        confidence=_sides([part.confidence for part in parts]),
        correct=_sides([part.correct for part in parts]),
    )


def _sides(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([base for base, _ in pairs]), torch.cat([new for _, new in pairs])


def reordered(sides: SampleComparison, order: list[int], rows: int) -> SampleComparison:
    """Samples at their positions `order` among `rows`; positions that were never compared hold zero tokens."""
    positions = torch.tensor(order)
    placed = {
        name: torch.zeros(rows, dtype=torch.float64).index_copy(0, positions, getattr(sides, name))
        for name in ("loss_base", "loss_new", "kl", "tokens")
    }
    return replace(sides, **placed)


def summarise(sides: SampleComparison, bins: int) -> dict[str, float]:
    """Token-mean losses (nats), perplexities, token KL (nats) and expected calibration errors of a set."""
    tokens = float(sides.tokens.sum())
    loss_base, loss_new = float(sides.loss_base.sum()) / tokens, float(sides.loss_new.sum()) / tokens
    return {
        "loss_base": loss_base,
        "loss_new": loss_new,
        "perplexity_base": math.exp(loss_base),
        "perplexity_new": math.exp(loss_new),
        "kl": float(sides.kl.sum()) / tokens,
        "ece_base": float(expected_calibration_error(sides.confidence[0], sides.correct[0], bins)),
        "ece_new": float(expected_calibration_error(sides.confidence[1], sides.correct[1], bins)),
    }
