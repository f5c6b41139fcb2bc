"""Products in bfloat16 under float32 weights: what they are near to, and what they count."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from foretune.tasks.loading import ModelSettings, label_caller, load_model, target_weights
from foretune.tasks.loading.adapters import AdapterSettings
from foretune.tasks.loading.autocast import AUTOCAST, fast_bfloat16
from foretune.tasks.numerics.batches import collate
from foretune.tasks.numerics.gradients import GradientSum
from foretune.tasks.numerics.objectives import Objective
from foretune.tasks.numerics.work import counted_work


@pytest.fixture
def measured(tiny_llama):
    """Gradient sums of q and v on a few rows, their loss, and the work that was counted, with and without autocast."""
    settings = AdapterSettings(r=2, target_modules=["q_proj", "v_proj"])
    plain = load_model(tiny_llama, ModelSettings(name_or_path=str(tiny_llama)))
    batch = collate([(list(range(3, 13)), [-100] * 4 + list(range(7, 13))), (list(range(20, 27)), list(range(20, 27)))])
    found = {}
    for autocast in (False, True):
        loaded = dataclasses.replace(plain, autocast=autocast)
        weights = target_weights(loaded, settings.targets)
        total = GradientSum(Objective(), weights)
        with counted_work() as work:
            total.add(label_caller(loaded, list(weights)), batch)
        assert all(parameter.dtype == torch.float32 for parameter in loaded.model.parameters())
        found[autocast] = (torch.cat([each.flatten() for each in total.sums.values()]), total.loss_sum, work)
    return found, batch


def test_gradients_and_losses_are_near_those_in_float32(measured):
    (plain, loss, _), (cast, cast_loss, _) = measured[0][False], measured[0][True]
    assert cast.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(plain, cast, dim=0) > 0.999
    assert not torch.equal(plain, cast)
    assert cast_loss == pytest.approx(loss, rel=0.01)


def test_a_token_counts_a_share_of_one(measured):
    found, batch = measured
    assert found[False][2].forward_tokens == batch.padded_tokens
    assert found[True][2].forward_tokens == AUTOCAST * batch.padded_tokens
    assert found[True][2].backward_tokens == AUTOCAST * batch.padded_tokens


def test_a_gpu_that_is_not_here_is_taken_to_be_fast_at_it():
    assert torch.cuda.is_available() or fast_bfloat16("cuda:0")


def test_a_processor_says_whether_it_is(monkeypatch):
    for instructions in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, instructions, lambda: False)
    assert not fast_bfloat16("cpu")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert fast_bfloat16("cpu")
