"""Two models' logits against dense distributions in float64, one token at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from foretune.tasks.numerics import comparison
from foretune.tasks.numerics.comparison import compare_logits, joined, quantile, sample_sums, summarise
from foretune.tasks.numerics.losses import token_losses

VOCAB = 11


def case(seed: int = 0, rows: int = 3, length: int = 6, vocab: int = VOCAB):
    generator = torch.Generator().manual_seed(seed)
    base = 2 * torch.randn(rows, length, vocab, generator=generator)
    new = base + 0.5 * torch.randn(rows, length, vocab, generator=generator)
    labels = torch.randint(vocab, (rows, length), generator=generator)
    labels[:, :2], labels[0, 4] = -100, -100
    return base, new, labels


def dense(base, new, labels):
    for row, column in (labels[:, 1:] != -100).nonzero().tolist():
        p, q = (logits[row, column].double().softmax(-1).numpy() for logits in (base, new))
        yield row, column + 1, int(labels[row, column + 1]), p, q


def test_every_figure_of_a_token_is_that_of_its_two_distributions():
    base, new, labels = case()
    tokens, _ = compare_logits(base, new, labels)
    for n, (row, position, target, p, q) in enumerate(dense(base, new, labels)):
        came = np.eye(VOCAB)[target]
        wanted = {
            "row": row,
            "position": position,
            "loss_base": -math.log(p[target]),
            "loss_new": -math.log(q[target]),
            "kl": entropy(p, q),
            "js": jensenshannon(p, q) ** 2,
            "confidence_base": p.max(),
            "confidence_new": q.max(),
            "correct_base": float(p.argmax() == target),
            "correct_new": float(q.argmax() == target),
            "brier_base": ((p - came) ** 2).sum(),
            "brier_new": ((q - came) ** 2).sum(),
        }
        assert {name: float(getattr(tokens, name)[n]) for name in wanted} == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    assert n + 1 == len(tokens.kl)


def test_a_loss_is_that_of_every_other_pass_over_a_large_vocabulary():
    base, new, labels = case(rows=2, length=40, vocab=50_000)
    tokens, _ = compare_logits(base, new, labels)
    for logits, loss in ((base, tokens.loss_base), (new, tokens.loss_new)):
        assert torch.equal(token_losses(logits, labels)[labels[:, 1:] != -100], loss)


def test_no_figure_depends_on_how_tokens_are_cut_or_batched(monkeypatch):
    base, new, labels = case(rows=4)
    whole = joined([compare_logits(base, new, labels, worst=5)], [range(4)], worst=5)
    monkeypatch.setattr(comparison, "CHUNK", 2 * VOCAB)
    order = [(3, 1), (0, 2)]
    parts = [compare_logits(base[[*rows]], new[[*rows]], labels[[*rows]], worst=5) for rows in order]
    cut = joined(parts, order, worst=5)
    for one, other in zip(whole, cut, strict=True):
        for name in ("row", "position", "kl") if one is whole[0] else ("top_base", "top_new"):
            torch.testing.assert_close(getattr(one, name), getattr(other, name))
    assert summarise(whole[0], 15) == pytest.approx(summarise(cut[0], 15), rel=1e-6)


def test_the_worst_tokens_are_those_of_largest_divergence_with_the_likeliest_of_both():
    base, new, labels = case(rows=4)
    tokens, worst = joined([compare_logits(base, new, labels, worst=4)], [range(4)], worst=4)
    by_kl = sorted(dense(base, new, labels), key=lambda each: -entropy(each[3], each[4]))[:4]
    assert list(zip(worst.tokens.row.tolist(), worst.tokens.position.tolist(), strict=True)) == [
        each[:2] for each in by_kl
    ]
    for n, (_, _, _, p, q) in enumerate(by_kl):
        for dist, top, likely in (
            (p, worst.top_base, worst.probability_base),
            (q, worst.top_new, worst.probability_new),
        ):
            assert top[n].tolist() == dist.argsort()[::-1][:3].tolist()
            assert likely[n].numpy() == pytest.approx(np.sort(dist)[::-1][:3], rel=1e-4)
    assert len(tokens.kl) > 4


def test_sums_of_samples_add_up_to_the_means_of_the_set():
    base, new, labels = case()
    tokens, _ = compare_logits(base, new, labels)
    sums, found = sample_sums(tokens, 4), summarise(tokens, 15)
    assert sums.tokens.tolist() == [3, 4, 4, 0]
    for name in ("loss_base", "loss_new", "kl", "js"):
        assert float(getattr(sums, name).sum() / sums.tokens.sum()) == pytest.approx(found[name], rel=1e-6)
    assert found["perplexity_new"] == pytest.approx(math.exp(found["loss_new"]))
    assert found["js_max"] <= math.log(2)


@pytest.mark.parametrize("share", [0.5, 0.95, 1.0])
@pytest.mark.parametrize("count", [1, 2, 19, 20, 21, 100])
def test_a_quantile_is_a_value_that_was_there(share, count):
    values = torch.randn(count, generator=torch.Generator().manual_seed(count))
    assert quantile(values, share) == pytest.approx(np.quantile(values.numpy(), share, method="inverted_cdf"))


def test_equal_models_differ_in_nothing():
    base, _, labels = case()
    found = summarise(compare_logits(base, base, labels)[0], 15)
    assert found["kl_max"] == 0.0 and found["js_max"] < 1e-6  # the log of a rounded mean
    assert found["loss_base"] == found["loss_new"] and found["brier_base"] == found["brier_new"]
