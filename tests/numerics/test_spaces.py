import pytest
import torch

from foretune.tasks.numerics.spaces import FullSpace, LoraSpace
from foretune.tasks.numerics.vectors import dot

SHAPES = {"a": (4, 3), "b": (2, 5)}


def random(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in shapes.items()}


@pytest.mark.parametrize("space", [FullSpace(), LoraSpace(random({"a": (2, 3), "b": (2, 5)}, 0), 4.0)], ids=str)
def test_pull_is_the_adjoint_of_lift(space):
    weights = random(SHAPES, 1)
    theta = random({n: tuple(z.shape) for n, z in space.zeros(weights).items()}, 2)
    gradient = random(SHAPES, 3)
    assert dot(space.lift(theta), gradient) == pytest.approx(dot(theta, space.pull(gradient)), rel=1e-12)


def test_lift_is_the_merged_lora_delta():
    a, b = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0], [-1.0]])
    lifted = LoraSpace({"w": a}, 2.0).lift({"w": b})["w"]
    assert torch.equal(lifted, torch.tensor([[2.0, 4.0, 6.0], [-2.0, -4.0, -6.0]]))


def test_coordinates_of_half_precision_weights_are_float32():
    weights = {"w": torch.zeros(4, 3, dtype=torch.bfloat16)}
    assert FullSpace().zeros(weights)["w"].dtype == torch.float32
    assert LoraSpace({"w": torch.zeros(2, 3)}, 1.0).zeros(weights)["w"].shape == (4, 2)
