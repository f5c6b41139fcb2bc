import weakref

import pytest
import torch

from foretune.tasks.numerics.curvature import CurvatureOperator, gauss_newton, hessian
from foretune.tasks.numerics.graphs import GaussNewtonGraph
from foretune.tasks.numerics.spaces import FullSpace, LoraSpace


def lora(toy, rank=2, seed=5):
    generator = torch.Generator().manual_seed(seed)
    factors = {
        n: torch.randn(rank, w.shape[1], generator=generator, dtype=torch.float64).to(w.dtype)
        for n, w in toy.weights.items()
    }
    return LoraSpace(factors, 1.7)


def close(actual, expected, rtol):
    assert torch.linalg.norm(actual - expected) <= rtol * torch.linalg.norm(expected)


def test_gauss_newton_product_is_the_dense_matrix_on_a_perceptron(perceptron):
    operator = gauss_newton(perceptron.call, perceptron.weights, FullSpace(), [perceptron.batch])
    v = perceptron.random(3)
    close(perceptron.flat(operator.matvec(v)), perceptron.dense_gauss_newton() @ perceptron.flat(v), 1e-10)


def test_gauss_newton_of_softmax_regression_is_its_hessian(perceptron):
    # With the hidden layer frozen the logits are linear in the last weights, so both matrices coincide.
    def call(weights, batch):
        return perceptron.call(perceptron.weights | weights, batch)

    last = {"second.weight": perceptron.weights["second.weight"]}
    v = {"second.weight": perceptron.random(4)["second.weight"]}
    product = gauss_newton(call, last, FullSpace(), [perceptron.batch]).matvec(v)["second.weight"]
    exact = hessian(call, last, FullSpace(), [perceptron.batch]).matvec(v)["second.weight"]
    close(product, exact, 1e-10)


def test_gauss_newton_product_is_the_dense_matrix_on_a_llama(llama):
    operator = gauss_newton(llama.call, llama.weights, FullSpace(), llama.split(2, 3))
    v = llama.random(3)
    close(llama.flat(operator.matvec(v)), llama.dense_gauss_newton() @ llama.flat(v), 1e-4)


def test_hessian_product_is_the_dense_matrix(perceptron, llama):
    for toy, rtol in ((perceptron, 1e-10), (llama, 1e-3)):
        v = toy.random(6)
        product = hessian(toy.call, toy.weights, FullSpace(), [toy.batch]).matvec(v)
        close(toy.flat(product), toy.dense_hessian() @ toy.flat(v), rtol)


@pytest.mark.parametrize("build", [gauss_newton, hessian])
def test_lora_product_is_the_congruence_of_the_full_one(perceptron, build):
    space = lora(perceptron)
    theta = {n: torch.randn(w.shape[0], 2, dtype=torch.float64) for n, w in perceptron.weights.items()}
    full = build(perceptron.call, perceptron.weights, FullSpace(), [perceptron.batch])
    expected = {
        n: 1.7 * g @ space.A[n].T for n, g in full.matvec({n: 1.7 * b @ space.A[n] for n, b in theta.items()}).items()
    }
    product = build(perceptron.call, perceptron.weights, space, [perceptron.batch]).matvec(theta)
    close(perceptron.flat(product), perceptron.flat(expected), 1e-10)


@pytest.mark.parametrize("build", [gauss_newton, hessian])
def test_micro_batches_do_not_change_the_product(perceptron, build):
    v = perceptron.random(7)
    whole = build(perceptron.call, perceptron.weights, FullSpace(), [perceptron.batch])
    expected = perceptron.flat(whole.matvec(v))
    for sizes in ((1, 1, 1, 1, 1, 1), (4, 2), (1, 5)):
        parts = build(perceptron.call, perceptron.weights, FullSpace(), perceptron.split(*sizes))
        assert parts.tokens == whole.tokens == perceptron.tokens
        close(perceptron.flat(parts.matvec(v)), expected, 1e-10)
        close(perceptron.flat(parts.matvec(v)), expected, 1e-10)


def test_batch_order_does_not_change_the_product(llama):
    v, parts = llama.random(8), llama.split(2, 2, 1)
    forward = gauss_newton(llama.call, llama.weights, FullSpace(), parts).matvec(v)
    backward = gauss_newton(llama.call, llama.weights, FullSpace(), parts[::-1]).matvec(v)
    close(llama.flat(forward), llama.flat(backward), 1e-5)


@pytest.mark.parametrize("build", [gauss_newton, hessian])
@pytest.mark.parametrize("graph_tokens", [0, 20, 10_000])
def test_kept_graphs_give_the_same_products(llama, build, graph_tokens):
    operator = build(llama.call, llama.weights, FullSpace(), llama.split(2, 3), graph_tokens=graph_tokens)
    fresh = build(llama.call, llama.weights, FullSpace(), llama.split(2, 3))
    for seed in (1, 2, 3):
        close(
            llama.flat(operator.matvec(llama.random(seed))),
            llama.flat(fresh.matvec(llama.random(seed))),
            1e-6,
        )
    assert operator.products == 3


def test_kept_graphs_run_the_forward_pass_once(perceptron):
    calls = []

    def counting(weights, batch):
        calls.append(batch.rows)
        return perceptron.call(weights, batch)

    operator = gauss_newton(counting, perceptron.weights, FullSpace(), perceptron.split(4, 2), graph_tokens=32)
    for seed in range(5):
        operator.matvec(perceptron.random(seed))
    assert calls.count(4) == 1 and calls.count(2) == 5


def test_no_more_graphs_are_held_than_those_kept_and_the_one_in_use(perceptron):
    live, held = weakref.WeakSet(), []

    def building(batch):
        held.append(len(live))
        graph = GaussNewtonGraph(perceptron.call, perceptron.weights, batch)
        live.add(graph)
        return graph

    parts = perceptron.split(2, 2, 2)
    operator = CurvatureOperator(building, FullSpace(), perceptron.weights, parts, parts[0].padded_tokens)
    operator.matvec(perceptron.random(1))
    operator.blocks(perceptron.random(2))
    assert held == [0, 1, 1, 1, 1]  # a graph is of all weights twice, and of everything that a micro-batch computes


def test_blocks_are_the_quadratic_forms_of_the_diagonal_blocks(llama):
    v = llama.random(10)
    for build, dense in ((gauss_newton, llama.dense_gauss_newton()), (hessian, llama.dense_hessian())):
        blocks = build(llama.call, llama.weights, FullSpace(), llama.split(3, 2)).blocks(v)
        for name in llama.weights:
            alone = llama.flat({n: t if n == name else torch.zeros_like(t) for n, t in v.items()})
            assert blocks[name] == pytest.approx((alone @ dense @ alone).item(), rel=1e-3)


def test_half_precision_weights_give_float32_products_close_to_float32(half_llama, llama):
    v = llama.random(11)
    half = gauss_newton(half_llama.call, half_llama.weights, FullSpace(), half_llama.split(2, 3)).matvec(v)
    assert all(t.dtype == torch.float32 for t in half.values())
    exact = gauss_newton(llama.call, llama.weights, FullSpace(), [llama.batch]).matvec(v)
    close(llama.flat(half), llama.flat(exact), 0.1)


def test_batches_without_labels_count_for_nothing(perceptron):
    silent = perceptron.split(6)[0]
    silent = type(silent)(silent.input_ids, silent.attention_mask, torch.full_like(silent.labels, -100))
    v = perceptron.random(12)
    expected = gauss_newton(perceptron.call, perceptron.weights, FullSpace(), [perceptron.batch]).matvec(v)
    both = gauss_newton(perceptron.call, perceptron.weights, FullSpace(), [silent, perceptron.batch]).matvec(v)
    close(perceptron.flat(both), perceptron.flat(expected), 1e-12)
    with pytest.raises(ValueError, match="1 curvature batches hold 0 label tokens"):
        gauss_newton(perceptron.call, perceptron.weights, FullSpace(), [silent])
