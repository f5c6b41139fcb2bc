"""A checkpoint that is opened beside its base costs the memory of what differs."""

from __future__ import annotations

import pytest
import torch

from foretune.tasks.loading import AdapterTargets, load_model, write_checkpoint
from foretune.tasks.loading.shared_tensors import share_equal
from foretune.tasks.loading.witnesses import weights_digest

from .conftest import settings
from .test_checkpoints import random_deltas


def held(*models) -> int:
    """Bytes of the parameters of all models together, memory that several use counted once."""
    own = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for model in models for p in model.parameters()}
    return sum(own.values())


@pytest.fixture
def pair(opened, tiny_llama, tmp_path):
    base = load_model(tiny_llama, settings(tiny_llama))
    deltas = random_deltas(base, AdapterTargets())
    write_checkpoint(tmp_path / "out", base, deltas, tiny_llama)
    return base, load_model(tmp_path / "out", settings(tmp_path / "out")), deltas


def test_two_open_models_hold_what_they_have_in_common_once(pair):
    base, moved, deltas = pair
    changed = sum(base.weight(name).numel() * 4 for name in deltas)
    assert held(base.model, moved.model) <= held(base.model) + changed
    assert held(base.model, moved.model, base.twin().model, moved.twin().model) <= held(base.model) + changed


def test_their_numbers_are_those_that_were_read(pair):
    base, moved, deltas = pair
    assert weights_digest(moved.model) == moved.digest != base.digest == weights_digest(base.model)
    for name, delta in deltas.items():
        torch.testing.assert_close(moved.weight(name), base.weight(name) + delta)
    firsts = (next(each.model.parameters()) for each in (base, moved))
    assert len({id(first) for first in firsts}) == 2  # each is witnessed by itself


def test_zero_and_minus_zero_are_not_the_same_memory():
    plain, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    for model, zero in ((plain, 0.0), (other, -0.0)):
        model.requires_grad_(False)
        torch.nn.init.constant_(model.weight, zero)
        torch.nn.init.constant_(model.bias, 1.0)
    digest = weights_digest(other)
    share_equal(other, plain)  # pyright: ignore[reportArgumentType]
    assert weights_digest(other) == digest
    assert other.weight.data_ptr() != plain.weight.data_ptr() and other.bias.data_ptr() == plain.bias.data_ptr()
