"""Base weights are witnessed while a run watches them: one that moved is noticed, by that run alone."""

from __future__ import annotations

import pytest
import torch

from foretune.storage.runs import Run
from foretune.tasks.engine.invariants import BrokenInvariant
from foretune.tasks.engine.keys import Fingerprint
from foretune.tasks.inputs.handles import ModelHandle
from foretune.tasks.loading import ModelSettings
from foretune.tasks.loading.witnesses import unwatch, watch, weights_digest, weights_unchanged, witness
from tests.dense import moved


@pytest.fixture
def during():
    run = Run("root", "during")
    watch(run)
    yield run
    unwatch(run)


def test_a_changed_base_weight_is_noticed(during):
    model = torch.nn.Linear(3, 3)
    assert witness(during, model, weights_digest(model))
    weights_unchanged(during)
    moved(model)
    weights_unchanged(Run("root", "another"))
    with pytest.raises(BrokenInvariant, match="base weights changed during simulate"):
        weights_unchanged(during)


def test_a_model_that_moved_before_the_run_is_read_again(during, tiny_llama):
    handle = ModelHandle(
        source=Fingerprint(uri=str(tiny_llama), digest=""), settings=ModelSettings(name_or_path=str(tiny_llama))
    )
    before = handle.open(Run("root", "before"))
    moved(before.model)
    again = handle.open(during)
    assert weights_digest(again.model) == again.digest == before.digest != weights_digest(before.model)
    weights_unchanged(during)
