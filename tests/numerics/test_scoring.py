import pytest
import torch

from foretune.tasks.numerics.scoring import sample_derivatives, sample_dots, token_derivatives


def exact(toy, direction):
    return toy.sample_gradients() @ toy.flat(direction)


def relative(actual, expected):
    return (torch.linalg.norm(actual - expected) / torch.linalg.norm(expected)).item()


def test_derivatives_are_the_sample_gradients_along_the_direction(perceptron, llama):
    for toy, rtol in ((perceptron, 1e-10), (llama, 1e-4)):
        direction = toy.random(1)
        forward = sample_derivatives(toy.call, toy.weights, direction, [toy.batch])
        dots = sample_dots(toy.call, toy.weights, [direction], [toy.batch], toy.modules)
        assert relative(forward, exact(toy, direction)) < rtol
        assert relative(dots[:, 0], exact(toy, direction)) < rtol


def test_neither_batch_size_nor_order_changes_a_score(llama):
    direction = llama.random(3)
    together = sample_derivatives(llama.call, llama.weights, direction, [llama.batch])
    parts = llama.split(1, 2, 2)
    apart = sample_derivatives(llama.call, llama.weights, direction, parts)
    assert relative(apart, together) < 1e-3
    reverse = sample_derivatives(llama.call, llama.weights, direction, parts[::-1])
    assert relative(torch.cat([reverse[4:], reverse[2:4], reverse[:2]]), together) < 1e-3


def test_several_directions_share_one_forward_and_backward(llama):
    directions, calls = [llama.random(s) for s in range(5)], []

    def counting(weights, batch):
        calls.append(1)
        return llama.call(weights, batch)

    dots = sample_dots(counting, llama.weights, directions, llama.split(3, 2), llama.modules)
    assert dots.shape == (5, 5) and len(calls) == 2
    for k, direction in enumerate(directions):
        assert relative(dots[:, k], exact(llama, direction)) < 1e-4


def test_dots_are_linear_in_the_direction(llama):
    a, b = llama.random(1), llama.random(2)
    both = {n: 2 * a[n] - 3 * b[n] for n in a}
    dots = sample_dots(llama.call, llama.weights, [a, b, both], [llama.batch], llama.modules)
    assert relative(dots[:, 2], 2 * dots[:, 0] - 3 * dots[:, 1]) < 1e-5


def test_a_direction_may_move_some_modules_only(llama):
    name = next(iter(llama.weights))
    part = {name: llama.random(4)[name]}
    padded = {n: part.get(n, torch.zeros_like(w)) for n, w in llama.weights.items()}
    for found in (
        sample_derivatives(llama.call, llama.weights, part, [llama.batch]),
        sample_dots(llama.call, llama.weights, [part], [llama.batch], llama.modules)[:, 0],
    ):
        assert relative(found, exact(llama, padded)) < 1e-4


def test_token_derivatives_sum_to_the_sample_and_vanish_on_the_prompt(llama):
    direction = llama.random(5)
    row = llama.split(1, 4)[0]
    tokens = token_derivatives(llama.call, llama.weights, direction, row)
    assert tokens.shape == (1, row.input_ids.shape[1] - 1)
    assert torch.equal(tokens != 0, row.labels[:, 1:] >= 0)
    assert relative(tokens.sum(1), exact(llama, direction)[:1]) < 1e-4


def test_weights_and_module_hooks_are_left_as_they_were(llama):
    before = {n: w.clone() for n, w in llama.weights.items()}
    sample_dots(llama.call, llama.weights, [llama.random(1)], [llama.batch], llama.modules)
    sample_derivatives(llama.call, llama.weights, llama.random(1), [llama.batch])
    assert all(torch.equal(before[n], w) and not w.requires_grad for n, w in llama.weights.items())
    assert all(not m._forward_hooks for m in llama.modules.values())


def test_rows_without_labels_score_zero_wherever_they_stand(llama):
    first, second = llama.split(2, 3)
    silent = type(first)(first.input_ids, first.attention_mask, torch.full_like(first.labels, -100))
    direction = llama.random(6)
    scores = sample_derivatives(llama.call, llama.weights, direction, [silent, second])
    assert scores[:2].tolist() == [0.0, 0.0]
    assert relative(scores[2:], exact(llama, direction)[2:]) < 1e-4
    only = sample_derivatives(llama.call, llama.weights, direction, [silent])
    assert only.tolist() == [0.0, 0.0]


def test_a_zero_direction_changes_nothing(llama):
    zero = {n: torch.zeros_like(w) for n, w in llama.weights.items()}
    assert not sample_derivatives(llama.call, llama.weights, zero, [llama.batch]).any()


def test_a_module_that_did_not_run_is_named(llama):
    stray = torch.nn.Linear(8, 8)
    with pytest.raises(ValueError, match=r"1 of 1 modules did not run: stray\.weight"):
        sample_dots(
            llama.call,
            llama.weights,
            [{"stray.weight": torch.zeros(8, 8)}],
            [llama.batch],
            {"stray.weight": stray},
        )
