import pytest
import torch

from foretune.tasks.numerics.scoring import sample_derivatives, sample_dots, step_along, token_derivatives


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


def test_differences_of_forwards_agree_with_forward_mode_to_one_in_a_thousand(llama):
    for seed in range(4):
        direction = {n: t * 10.0 ** (seed - 2) for n, t in llama.random(seed).items()}
        forward = sample_derivatives(llama.call, llama.weights, direction, [llama.batch])
        central = sample_derivatives(llama.call, llama.weights, direction, [llama.batch], "difference")
        assert relative(central, forward) < 1e-3


def test_one_sided_differences_agree_to_three_in_a_hundred(llama):
    base = llama.sample_losses(llama.weights)
    for seed in range(4):
        direction = llama.random(seed)
        one = sample_derivatives(llama.call, llama.weights, direction, [llama.batch], "one_sided", base)
        assert relative(one, exact(llama, direction)) < 3e-2


@pytest.mark.parametrize("method, order", [("difference", 2), ("one_sided", 1)])
def test_halving_the_step_divides_the_error_by_two_to_the_order(perceptron, method, order):
    direction, base = perceptron.random(2), perceptron.sample_losses(perceptron.weights)
    errors = [
        relative(
            sample_derivatives(perceptron.call, perceptron.weights, direction, [perceptron.batch], method, base, h),
            exact(perceptron, direction),
        )
        for h in (0.02, 0.01)
    ]
    assert errors[0] / errors[1] == pytest.approx(2.0**order, rel=0.05)


@pytest.mark.parametrize("method", ["forward", "difference", "one_sided"])
def test_neither_batch_size_nor_order_changes_a_score(llama, method):
    direction = llama.random(3)
    step = step_along(llama.call, llama.weights, direction, llama.batch, method)
    base = llama.sample_losses(llama.weights)
    together = sample_derivatives(llama.call, llama.weights, direction, [llama.batch], method, base, step)
    parts = llama.split(1, 2, 2)
    apart = sample_derivatives(llama.call, llama.weights, direction, parts, method, base, step)
    assert relative(apart, together) < 1e-3
    turned = torch.cat([base[3:], base[1:3], base[:1]])
    reverse = sample_derivatives(llama.call, llama.weights, direction, parts[::-1], method, turned, step)
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
    differences = token_derivatives(llama.call, llama.weights, direction, row, "difference")
    assert relative(differences, tokens) < 2e-3


def test_weights_and_module_hooks_are_left_as_they_were(llama):
    before = {n: w.clone() for n, w in llama.weights.items()}
    sample_dots(llama.call, llama.weights, [llama.random(1)], [llama.batch], llama.modules)
    sample_derivatives(llama.call, llama.weights, llama.random(1), [llama.batch], "difference")
    assert all(torch.equal(before[n], w) and not w.requires_grad for n, w in llama.weights.items())
    assert all(not m._forward_hooks for m in llama.modules.values())


def test_one_sided_differences_need_every_base_loss(llama):
    with pytest.raises(ValueError, match="one base loss per row: no given for 5 rows"):
        sample_derivatives(llama.call, llama.weights, llama.random(1), [llama.batch], "one_sided")
    with pytest.raises(ValueError, match="one base loss per row: 3 given for 5 rows"):
        sample_derivatives(llama.call, llama.weights, llama.random(1), [llama.batch], "one_sided", torch.zeros(3))


def test_an_unknown_method_names_the_choices(llama):
    with pytest.raises(ValueError, match="choose one of forward, difference, one_sided"):
        sample_derivatives(llama.call, llama.weights, llama.random(1), [llama.batch], "guess")


def test_token_derivatives_have_no_one_sided_form(llama):
    with pytest.raises(ValueError, match="'one_sided' has no token derivatives: choose forward or difference"):
        token_derivatives(llama.call, llama.weights, llama.random(1), llama.batch, "one_sided")


@pytest.mark.parametrize("method", ["forward", "difference", "one_sided"])
def test_rows_without_labels_score_zero_wherever_they_stand(llama, method):
    first, second = llama.split(2, 3)
    silent = type(first)(first.input_ids, first.attention_mask, torch.full_like(first.labels, -100))
    direction = llama.random(6)
    base = torch.cat([torch.zeros(2), llama.sample_losses(llama.weights)[2:]])
    scores = sample_derivatives(llama.call, llama.weights, direction, [silent, second], method, base)
    assert scores[:2].tolist() == [0.0, 0.0]
    assert relative(scores[2:], exact(llama, direction)[2:]) < 0.1
    only = sample_derivatives(llama.call, llama.weights, direction, [silent], method, base[:2])
    assert only.tolist() == [0.0, 0.0]


def test_a_zero_direction_changes_nothing(llama):
    zero = {n: torch.zeros_like(w) for n, w in llama.weights.items()}
    for method in ("forward", "difference"):
        assert not sample_derivatives(llama.call, llama.weights, zero, [llama.batch], method).any()


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
