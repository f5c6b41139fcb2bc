import math

import pytest
import torch

from foretune.tasks.numerics.losses import (
    margins,
    preference_losses,
    sample_losses,
    sequence_logprobs,
    token_losses,
)


def logits_of(toy):
    return toy.call(toy.weights, toy.batch)


def test_token_losses_are_the_shifted_cross_entropy(llama):
    logits, labels = logits_of(llama), llama.batch.labels
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), labels[:, 1:], ignore_index=-100, reduction="none"
    )
    assert torch.allclose(token_losses(logits, labels), expected, atol=1e-6)


def test_uniform_logits_cost_the_log_of_the_vocabulary():
    labels = torch.tensor([[1, 2, -100, 3]])
    losses = token_losses(torch.zeros(1, 4, 11), labels)
    assert torch.allclose(losses, torch.tensor([[math.log(11), 0.0, math.log(11)]]))


def test_sample_losses_are_sums_with_their_token_counts(perceptron):
    found = sample_losses(logits_of(perceptron), perceptron.batch.labels)
    assert torch.allclose(found.loss_sum, perceptron.sample_losses(perceptron.weights))
    assert found.tokens.tolist() == [6, 5, 5, 3, 2, 1]


def test_padding_and_batch_size_do_not_change_a_loss(llama):
    together = sample_losses(logits_of(llama), llama.batch.labels).loss_sum
    alone = torch.cat(
        [sample_losses(llama.call(llama.weights, b), b.labels).loss_sum for b in llama.split(1, 1, 1, 1, 1)]
    )
    assert torch.allclose(together, alone, rtol=1e-5)


def test_rows_without_labels_lose_exactly_nothing():
    found = sample_losses(torch.randn(2, 3, 5), torch.full((2, 3), -100))
    assert found.loss_sum.tolist() == [0.0, 0.0] and found.tokens.tolist() == [0, 0]


def test_half_precision_logits_are_summed_in_float32():
    logits = torch.randn(1, 4, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.tensor([[0, 1, 2, 3]])
    losses = token_losses(logits, labels)
    assert losses.dtype == torch.float32
    assert torch.equal(losses, token_losses(logits.float(), labels))


def test_sequence_logprobs_multiply_token_probabilities():
    logits = torch.tensor([[[0.0, math.log(3.0)], [math.log(4.0), 0.0], [9.0, 9.0]]])
    logprob = sequence_logprobs(logits, torch.tensor([[-100, 1, 0]]))
    assert logprob.exp().item() == pytest.approx(0.75 * 0.8, rel=1e-6)


def test_dpo_loss_at_the_reference_is_log_two_with_gradient_half_beta():
    chosen = torch.tensor([-5.0, -9.0], requires_grad=True)
    rejected = torch.tensor([-7.0, -2.0], requires_grad=True)
    losses = preference_losses(chosen, rejected, chosen.detach(), rejected.detach(), beta=0.3)
    assert losses.tolist() == pytest.approx([math.log(2.0)] * 2)
    losses.sum().backward()
    assert chosen.grad.tolist() == pytest.approx([-0.15] * 2)
    assert rejected.grad.tolist() == pytest.approx([0.15] * 2)


def test_dpo_loss_falls_as_the_policy_moves_towards_the_chosen_answer():
    zero = torch.zeros(1)
    better = preference_losses(zero + 1.0, zero - 1.0, zero, zero, beta=0.5)
    assert better.item() == pytest.approx(math.log1p(math.exp(-1.0)))


def test_margins_are_raw_per_token_and_against_the_reference():
    found = margins(
        policy_chosen=torch.tensor([-10.0]),
        policy_rejected=torch.tensor([-6.0]),
        ref_chosen=torch.tensor([-12.0]),
        ref_rejected=torch.tensor([-5.0]),
        tokens_chosen=torch.tensor([10]),
        tokens_rejected=torch.tensor([3]),
    )
    assert (found.raw.item(), found.per_token.item(), found.reference.item()) == (-4.0, 1.0, 3.0)
