"""Randomised singular values against torch's own decomposition, over prescribed spectra."""

from __future__ import annotations

import pytest
import torch

from foretune.tasks.numerics.singular import EXACT, largest_singular


def matrix(out: int, inputs: int, spectrum: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(out + inputs)
    u, v = (
        torch.linalg.qr(torch.randn(n, len(spectrum), generator=generator, dtype=torch.float64)).Q
        for n in (out, inputs)
    )
    return (u * spectrum.double()) @ v.T


@pytest.mark.parametrize("shape", [(40, 24), (24, 300), (EXACT + 44, EXACT + 100), (600, 300)])
@pytest.mark.parametrize(
    ("name", "spectrum"),
    [
        ("LoRA", torch.tensor([3.0, 1.0, 0.5, 0.5, 0.1, 0.05, 0.04, 0.01])),
        ("one direction", torch.tensor([2.0])),
        ("a power law", 1 / torch.arange(1, 25.0)),
    ],
)
def test_the_largest_values_and_the_stable_rank_are_those_of_the_whole_decomposition(shape, name, spectrum):
    change = 1e-6 * matrix(*shape, spectrum)
    found, every = largest_singular(change.float()), torch.linalg.svdvals(change)
    torch.testing.assert_close(found.values.double(), every[:4], rtol=1e-3, atol=1e-12)
    assert found.stable_rank == pytest.approx(float(every.square().sum() / every[0] ** 2), rel=1e-3)
    for k in range(1 if len(spectrum) == 1 else 2):
        u, v = found.outputs[:, k].double(), found.inputs[:, k].double()
        torch.testing.assert_close(change @ v, found.values[k].double() * u, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("shape", [(EXACT + 44, 900), (900, EXACT + 44)])
def test_a_flat_spectrum_is_within_a_tenth(shape):
    change = torch.randn(*shape, generator=torch.Generator().manual_seed(3))
    found, every = largest_singular(change), torch.linalg.svdvals(change)
    assert (found.values / every[:4]).min() > 0.9 and (found.values / every[:4]).max() <= 1.001


def test_no_change_has_no_rank_and_no_seed_of_the_process_is_drawn_from():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert largest_singular(torch.zeros(300, 300)).stable_rank == 0.0
    assert torch.equal(before, torch.get_rng_state())
