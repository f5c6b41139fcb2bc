"""Values by sample id: other orders of the rows, rows without a value, and what must not go unnoticed."""

from __future__ import annotations

import pytest
import torch

from foretune.storage.runs import Run
from foretune.tasks.inputs.sample_values import SampleValues

SCORES = SampleValues(["a", "b", "c"], torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]], dtype=torch.float64))


def test_values_follow_their_ids_into_another_order():
    assert SCORES.of(["c", "a"]).tolist() == [[3.0, 30.0], [1.0, 10.0]]
    assert SCORES.of(SCORES.ids).equal(SCORES.values)


def test_a_sample_without_a_value_has_zero():
    spread = SCORES.spread_over(["c", "x", "a", "b"])
    assert spread.tolist() == [[3.0, 30.0], [0.0, 0.0], [1.0, 10.0], [2.0, 20.0]]
    assert spread.dtype == torch.float64


def test_spreading_and_reading_back_are_inverse():
    order = ["c", "x", "a", "b"]
    assert SampleValues(order, SCORES.spread_over(order)).of(SCORES.ids).equal(SCORES.values)


def test_no_values_spread_to_zeros():
    assert SampleValues([], torch.zeros(0, 2)).spread_over(["a"]).tolist() == [[0.0, 0.0]]


def test_an_unknown_sample_is_no_silent_zero():
    with pytest.raises(KeyError, match="x"):
        SCORES.of(["a", "x"])
    with pytest.raises(KeyError, match="c"):
        SCORES.spread_over(["a", "b"])


@pytest.mark.parametrize("ids", [["a"], ["a", "b", "b"]])
def test_ids_that_do_not_fit_the_values_are_refused(ids):
    with pytest.raises(ValueError, match=f"3 values for {len(ids)} sample ids"):
        SampleValues(ids, torch.zeros(3))


def test_parts_of_several_artefacts_are_joined(tmp_path):
    run = Run(str(tmp_path), "20260101-000000-tiny-0001")
    stored = []
    for ids, values in ((["b"], [2.0]), (["a", "c"], [1.0, 3.0])):
        with run.store.create("influence_shard", "".join(ids).ljust(40, "0"), inputs={}, version=1) as draft:
            draft.write_tensors("scores.safetensors", {"replayed": torch.tensor(values)})
            draft.write_json("samples.json", ids)
        stored.append(draft.ref)
    joined = SampleValues.read(run, stored, "scores.safetensors", "replayed")
    assert joined.ids == ["b", "a", "c"]
    assert joined.of(["a", "b", "c"]).tolist() == [1.0, 2.0, 3.0]
