import torch

from foretune.tasks.numerics.curvature import gauss_newton, hessian
from foretune.tasks.numerics.scoring import sample_derivatives, sample_dots
from foretune.tasks.numerics.spaces import FullSpace


def test_products_through_fused_attention_are_those_of_eager_attention(llama, sdpa_llama):
    v = llama.random(1)
    for build in (gauss_newton, hessian):
        eager = llama.flat(build(llama.call, llama.weights, FullSpace(), [llama.batch]).matvec(v))
        fused = llama.flat(build(sdpa_llama.call, llama.weights, FullSpace(), [llama.batch]).matvec(v))
        assert torch.linalg.norm(fused - eager) < 1e-4 * torch.linalg.norm(eager)


def test_scores_through_fused_attention_are_those_of_eager_attention(llama, sdpa_llama):
    v = llama.random(2)
    exact = llama.sample_gradients() @ llama.flat(v)
    forward = sample_derivatives(sdpa_llama.call, llama.weights, v, [llama.batch])
    dots = sample_dots(sdpa_llama.call, llama.weights, [v], [llama.batch], sdpa_llama.modules)[:, 0]
    for found in (forward, dots):
        assert torch.linalg.norm(found - exact) < 1e-4 * torch.linalg.norm(exact)


def test_the_choice_of_kernels_is_restored(sdpa_llama):
    before = torch.backends.cuda.flash_sdp_enabled()
    gauss_newton(sdpa_llama.call, sdpa_llama.weights, FullSpace(), [sdpa_llama.batch]).matvec(sdpa_llama.random(0))
    assert torch.backends.cuda.flash_sdp_enabled() == before
