"""Peak memory of one step of the real run, by the model's shapes."""

from __future__ import annotations

from pathlib import Path

import pytest

from foretune.tasks.loading import AdapterTargets
from foretune.tasks.loading.footprint import Footprint, footprint

SMOLLM2 = Footprint(
    parameters=134_515_008,
    modules=60,
    adapted=13_271_040,
    outputs=23_040,
    inputs=34_560,
    graph=30 * (14 * 576 + 4 * 1536 + 2 * 9 * 256) + 3 * 49_152,
    read=14 * 576 + 4 * 1536 + 2 * 9 * 256 + 3 * 49_152,
    width=576,
    layers=30,
    vocabulary=49_152,
)


@pytest.mark.parametrize(
    ("tokens", "checkpointing", "measured"), [(512, False, 2.779e9), (1024, False, 4.343e9), (1024, True, 2.622e9)]
)
def test_a_step_of_a_135m_model_takes_about_what_was_measured(tokens, checkpointing, measured):
    """Measured as a process's peak over two steps: LoRA of rank 8 on q and v, AdamW, eager attention, float32."""
    said = SMOLLM2.step_bytes("float32", tokens, rank=8, moments=2, checkpointing=checkpointing)
    assert said == pytest.approx(measured, rel=0.1)


def test_a_full_fine_tune_holds_gradients_and_moments_of_all_weights(tiny_llama: Path):
    sizes = footprint(tiny_llama, AdapterTargets(method="full"))
    assert sizes is not None
    adamw, sgd = (sizes.step_bytes("float32", 0, None, moments, checkpointing=False) for moments in (2, 0))
    assert adamw - sgd == 2 * 4 * sizes.parameters
    assert sizes.step_bytes("float32", 8, 4, 2, checkpointing=True) < sizes.step_bytes("float32", 8, 4, 2, False)
