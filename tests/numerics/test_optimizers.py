import pytest
import torch

from foretune.tasks.numerics.optimizers import OptimizerSettings, advance, clip_global_norm, initial_state

RATES = {"adamw": 3e-3, "sgd": 0.1}
SETTINGS = {
    "adamw": OptimizerSettings("adamw"),
    "adamw with decay": OptimizerSettings("adamw", weight_decay=0.1, betas=(0.8, 0.95), eps=1e-6),
    "sgd": OptimizerSettings("sgd"),
    "sgd with decay": OptimizerSettings("sgd", weight_decay=0.05),
    "sgd with momentum": OptimizerSettings("sgd", momentum=0.9, weight_decay=0.05),
    "sgd with nesterov": OptimizerSettings("sgd", momentum=0.9, nesterov=True),
}


def torch_optimizer(settings, parameters):
    common = {"lr": RATES[settings.name], "weight_decay": settings.weight_decay}
    if settings.name == "adamw":
        return torch.optim.AdamW(parameters, betas=settings.betas, eps=settings.eps, **common)
    return torch.optim.SGD(parameters, momentum=settings.momentum, nesterov=settings.nesterov, **common)


@pytest.fixture
def weights():
    torch.manual_seed(0)
    return {"p": torch.randn(5, 3), "q": torch.randn(7)}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_twelve_steps_equal_torch_optim(settings, weights):
    theirs = {name: torch.nn.Parameter(w.clone()) for name, w in weights.items()}
    optimizer = torch_optimizer(settings, theirs.values())
    ours, state = {name: w.clone() for name, w in weights.items()}, initial_state(settings, weights)
    for step in range(12):
        rate = RATES[settings.name] * (step + 1) / 12
        optimizer.param_groups[0]["lr"] = rate
        gradients = {name: torch.randn_like(w) for name, w in weights.items()}
        for name, parameter in theirs.items():
            parameter.grad = gradients[name].clone()
        optimizer.step()
        state = advance(settings, state, ours, gradients, rate)
    for name, parameter in theirs.items():
        torch.testing.assert_close(ours[name], parameter.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["adamw with decay", "sgd with decay", "sgd with momentum"])
def test_decay_of_differences_acts_on_the_weight_itself(name, weights):
    settings = SETTINGS[name]
    whole, whole_state = {n: w.clone() for n, w in weights.items()}, initial_state(settings, weights)
    change = {n: torch.zeros_like(w) for n, w in weights.items()}
    change_state = initial_state(settings, weights)
    for _ in range(6):
        gradients = {n: torch.randn_like(w) for n, w in weights.items()}
        whole_state = advance(settings, whole_state, whole, gradients, 0.02)
        change_state = advance(settings, change_state, change, gradients, 0.02, origin=weights)
    for n, weight in weights.items():
        torch.testing.assert_close(weight + change[n], whole[n], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("max_norm", [0.5, 1e6, None, 0])
def test_clipping_equals_clip_grad_norm(max_norm):
    torch.manual_seed(1)
    gradients = {"p": torch.randn(5, 3), "q": torch.randn(7)}
    parameters = [torch.nn.Parameter(torch.zeros_like(g)) for g in gradients.values()]
    for parameter, gradient in zip(parameters, gradients.values(), strict=True):
        parameter.grad = gradient.clone()
    expected_norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm or float("inf"))
    clipped, norm = clip_global_norm(gradients, max_norm)
    assert norm == pytest.approx(float(expected_norm), rel=1e-6)
    for parameter, gradient in zip(parameters, clipped.values(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-6, atol=1e-7)


def test_an_unknown_optimizer_names_the_known_ones():
    with pytest.raises(ValueError, match="'lion' is unknown: use one of adamw, sgd"):
        OptimizerSettings("lion")


def test_nesterov_without_momentum_is_refused():
    with pytest.raises(ValueError, match="positive momentum"):
        OptimizerSettings("sgd", nesterov=True)
