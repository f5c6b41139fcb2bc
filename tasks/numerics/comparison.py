"""Two models on the same label tokens: losses, divergences, confidence. Sums per sample, divided once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from foretune.tasks.numerics.calibration import expected_calibration_error
from foretune.tasks.numerics.losses import label_logits, label_positions

CHUNK = 2**22
"""Logits that are compared at once: 16 MB in float32, of which a dozen copies are held."""

TOP = 3
"""Tokens named of each distribution."""


@dataclass(frozen=True)
class TokenComparison:
    """Per label token of a set, [n] each."""

    row: Tensor  # long: the sample it belongs to
    position: Tensor  # long: the token's place in its sample, from 0
    loss_base: Tensor  # nats
    loss_new: Tensor
    kl: Tensor  # nats, KL(base || new)
    js: Tensor  # nats, Jensen-Shannon divergence: at most ln 2
    confidence_base: Tensor  # the largest next-token probability
    confidence_new: Tensor
    correct_base: Tensor  # 1.0 where that token came
    correct_new: Tensor
    brier_base: Tensor  # sum_k (p_k - y_k)^2 over the vocabulary, y one-hot: 0 to 2
    brier_new: Tensor

    def take(self, chosen: Tensor) -> TokenComparison:
        """The tokens at these places."""
        return TokenComparison(*(getattr(self, field.name)[chosen] for field in fields(self)))

    def numbered(self, rows: Sequence[int]) -> TokenComparison:
        """The same with its samples named by their numbers `rows`."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        return TokenComparison(**columns | {"row": torch.tensor(rows)[self.row]})


@dataclass(frozen=True)
class WorstTokens:
    """Label tokens of largest KL, with the likeliest tokens of both models."""

    tokens: TokenComparison  # of n tokens
    top_base: Tensor  # [n, 3] token ids
    top_new: Tensor
    probability_base: Tensor  # [n, 3] of these
    probability_new: Tensor


@torch.no_grad()
def compare_logits(base: Tensor, new: Tensor, labels: Tensor, worst: int = 0) -> tuple[TokenComparison, WorstTokens]:
    """Comparison of one micro-batch from two logits [b, s, vocab], or [n, vocab] at its label tokens, and labels
    [b, s]; of the `worst` tokens the likeliest ones too.

    Losses are logsumexp - logit, as every other loss is: float32's log_softmax sums a large vocabulary's
    exponentials less exactly, which moved a mean loss by 8e-6 nats.
    """
    rows, cols = label_positions(labels)
    target = labels[rows, cols + 1]
    before, after = label_logits(base, labels), label_logits(new, labels)
    step = max(1, CHUNK // before.shape[-1])
    starts = range(0, len(rows), step) or [0]
    parts = [_compared(*(each[at : at + step] for each in (before, after, target))) for at in starts]
    columns = {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}
    tokens = TokenComparison(row=rows.cpu(), position=(cols + 1).cpu(), **columns)
    most = tokens.kl.topk(min(worst, len(rows))).indices
    top = [side[most.to(side.device)].softmax(-1).topk(min(TOP, side.shape[-1])) for side in (before, after)]
    ids, likely = ([getattr(side, name).cpu() for side in top] for name in ("indices", "values"))
    return tokens, WorstTokens(tokens.take(most), *ids, *likely)


def _compared(before: Tensor, after: Tensor, target: Tensor) -> dict[str, Tensor]:
    """The figures of `TokenComparison` from logits [n, vocab] and the tokens that came [n]."""
    found, logs, shares = {}, [], []
    for side, logits in (("base", before), ("new", after)):
        total = logits.logsumexp(-1, keepdim=True)
        chosen = logits.gather(-1, target[:, None])
        log_p = logits - total
        p = log_p.exp()
        confidence, guess = p.max(-1)
        found |= {
            f"loss_{side}": (total - chosen).squeeze(-1),
            f"confidence_{side}": confidence,
            f"correct_{side}": (guess == target).to(p.dtype),
            f"brier_{side}": p.square().sum(-1) - 2 * (chosen - total).exp().squeeze(-1) + 1,
        }
        logs.append(log_p)
        shares.append(p)
    (log_p, log_q), (p, q) = logs, shares
    mean = ((p + q) / 2).clamp_min(torch.finfo(p.dtype).tiny).log()
    kl = (p * (log_p - log_q)).sum(-1)
    js = ((p * (log_p - mean)).sum(-1) + (q * (log_q - mean)).sum(-1)) / 2
    return found | {"kl": kl.clamp_min(0), "js": js.clamp_min(0)}  # only rounding is below


def joined(
    parts: Sequence[tuple[TokenComparison, WorstTokens]], rows: Sequence[Sequence[int]], worst: int = 0
) -> tuple[TokenComparison, WorstTokens]:
    """Micro-batches in the order of the samples' numbers `rows`, and the `worst` tokens of all, largest KL first."""
    tokens = _concatenated([each.numbered(numbers) for (each, _), numbers in zip(parts, rows, strict=True)])
    longest = int(tokens.position.max()) + 1 if len(tokens.kl) else 1
    tokens = tokens.take((tokens.row * longest + tokens.position).argsort())
    most = _concatenated([each.tokens.numbered(numbers) for (_, each), numbers in zip(parts, rows, strict=True)])
    # By four digits of KL, then by place: the rounding of another micro-batching does not change the order.
    places = zip(most.kl.tolist(), most.row.tolist(), most.position.tolist(), range(len(most.kl)), strict=True)
    order = [n for *_, n in sorted((-float(f"{kl:.4g}"), row, position, n) for kl, row, position, n in places)]
    chosen = torch.tensor(order[:worst], dtype=torch.long)
    named = {f.name: torch.cat([getattr(each, f.name) for _, each in parts])[chosen] for f in fields(WorstTokens)[1:]}
    return tokens, WorstTokens(most.take(chosen), **named)


def _concatenated(parts: Sequence[TokenComparison]) -> TokenComparison:
    return TokenComparison(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(TokenComparison)))


@dataclass(frozen=True)
class SampleSums:
    """Per sample of a set, [n] float64: sums over its label tokens."""

    tokens: Tensor
    loss_base: Tensor  # nats
    loss_new: Tensor
    kl: Tensor
    js: Tensor


def sample_sums(tokens: TokenComparison, rows: int) -> SampleSums:
    """Sums of every one of `rows` samples; one without a label token holds zeros."""
    ones = torch.ones_like(tokens.kl)
    added = (ones, tokens.loss_base, tokens.loss_new, tokens.kl, tokens.js)
    zeros = torch.zeros(rows, dtype=torch.float64)
    return SampleSums(*(zeros.index_add(0, tokens.row, values.double()) for values in added))


def quantile(values: Tensor, share: float) -> float:
    """The smallest value that at least this share of `values` does not exceed; nan of none."""
    if not values.numel():
        return math.nan
    return float(values.sort().values[max(0, math.ceil(share * values.numel() - 1e-9) - 1)])


def _mean(values: Tensor) -> float:
    return float(values.double().mean())


def summarise(tokens: TokenComparison, bins: int) -> dict[str, float]:
    """Token means of a set: losses (nats) and perplexities, divergences (nats), calibration."""
    found: dict[str, float] = {}
    for side in ("base", "new"):
        loss = _mean(getattr(tokens, f"loss_{side}"))
        found |= {f"loss_{side}": loss, f"perplexity_{side}": math.exp(min(loss, 700.0))}
    for name in ("kl", "js"):
        values = getattr(tokens, name)
        found |= {name: _mean(values), f"{name}_median": quantile(values, 0.5)}
        found |= {f"{name}_p95": quantile(values, 0.95), f"{name}_max": quantile(values, 1.0)}
    for side in ("base", "new"):
        confidence, correct = getattr(tokens, f"confidence_{side}"), getattr(tokens, f"correct_{side}")
        found[f"ece_{side}"] = expected_calibration_error(confidence, correct, bins)
        found[f"brier_{side}"] = _mean(getattr(tokens, f"brier_{side}"))
    return found
