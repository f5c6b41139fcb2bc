import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foretune.tasks.numerics.batches import buckets, collate

lengths = st.lists(st.integers(1, 60), max_size=40)


def test_rows_are_padded_on_the_right():
    batch = collate([([5, 6, 7], [-100, 6, 7]), ([8], [8])])
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.labels.tolist() == [[-100, 6, 7], [8, -100, -100]]


def test_the_first_token_carries_no_loss():
    batch = collate([([5, 6, 7], [5, 6, 7]), ([8], [8])])
    assert (batch.label_tokens, batch.padded_tokens, batch.rows) == (2, 6, 2)
    assert batch.to("cpu").input_ids.dtype == torch.long


def test_rows_with_labels_missing_are_refused():
    with pytest.raises(ValueError, match="row 1 has 2 ids, 1 labels"):
        collate([([1], [1]), ([1, 2], [1])])
    with pytest.raises(ValueError, match="row 0 has 0 ids, 0 labels"):
        collate([([], [])])
    with pytest.raises(ValueError, match="at least one row"):
        collate([])


@given(lengths, st.integers(60, 200))
def test_buckets_hold_every_row_once_within_the_bound(row_lengths, max_tokens):
    groups = buckets(row_lengths, max_tokens)
    assert sorted(i for group in groups for i in group) == list(range(len(row_lengths)))
    for group in groups:
        assert len(group) * max(row_lengths[i] for i in group) <= max_tokens


def test_rows_of_one_length_stay_in_order():
    assert buckets([3, 5, 3, 5, 3], 10) == [[1, 3], [0, 2, 4]]


def test_bucketing_wastes_less_than_reading_in_order():
    row_lengths = [10, 100] * 20
    padded = sum(len(g) * max(row_lengths[i] for i in g) for g in buckets(row_lengths, 400))
    assert padded == sum(row_lengths) < 40 * 100


def test_a_row_beyond_the_bound_names_both_numbers():
    with pytest.raises(ValueError, match="a row of 70 tokens exceeds max_tokens=64"):
        buckets([3, 70], 64)
