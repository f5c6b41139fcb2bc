"""Overlap and near-duplicates against their definitions, pair by pair."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretune.tasks.quality.diversity import (
    jaccard,
    mean_overlap,
    near_duplicates,
    signatures,
    word_count,
    word_hashes,
    words,
)
from foretune.tasks.quality.phrases import normal_text

SETS = st.lists(st.frozensets(st.integers(0, 12), max_size=8), max_size=14)


def arrays(sets):
    return [np.array(sorted(items), dtype=np.uint64) for items in sets]


@given(SETS)
def test_the_mean_overlap_is_that_of_all_pairs(sets):
    pairs = [(a, b) for a, b in combinations([items for items in sets if items], 2)]
    overlap = mean_overlap(arrays(sets))
    assert overlap.pairs == len(pairs)
    if not pairs:
        assert overlap.mean is None
        return
    expected = sum(len(a & b) / min(len(a), len(b)) for a, b in pairs) / len(pairs)
    assert overlap.mean == pytest.approx(expected, abs=1e-12)


@given(SETS, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_move_the_overlap_by_a_bit(sets, random):
    assert mean_overlap(arrays(sets)) == mean_overlap(arrays(random.sample(sets, len(sets))))


@given(st.frozensets(st.integers(0, 9)), st.frozensets(st.integers(0, 9)))
def test_jaccard_is_shared_of_all(one, other):
    expected = len(one & other) / len(one | other) if one | other else 0
    assert jaccard(*arrays([one, other])) == pytest.approx(expected)


def clusters(texts, threshold=0.7):
    hashed = word_hashes([words(normal_text(text).text) for text in texts])
    sets = [np.array(hashes, dtype=np.uint64) for hashes in hashed]
    return near_duplicates(sets, np.array(signatures(hashed), dtype=np.uint32), threshold)


def test_rewordings_cluster_around_the_first_and_strangers_stay_alone():
    base = "open the app choose wifi then password and type the new password twice"
    texts = [
        base,
        "a quite different sentence about boats",
        base + " please",
        base.replace("twice", "again"),
        "",
    ]
    assert clusters(texts) == [0, 1, 0, 0, 4]


def test_no_pair_below_the_threshold_is_joined_alone():
    texts = ["one two three four five six", "one two three four nine ten"]
    assert clusters(texts, threshold=0.6) == [0, 1]
    assert clusters(texts, threshold=0.5) == [0, 0]


def test_near_duplicates_are_those_of_exact_comparison():
    random = np.random.default_rng(0)
    vocabulary = np.array([f"word{n}" for n in range(300)])
    originals = [random.choice(vocabulary, 40, replace=False) for _ in range(60)]
    texts = []
    for tokens in originals:
        texts.append(" ".join(tokens))
        changed = tokens.copy()
        changed[: random.integers(1, 5)] = "other"
        texts.append(" ".join(changed))
    roots = clusters(texts)
    sets = [set(text.split()) for text in texts]
    similar = {(a, b) for a, b in combinations(range(len(texts)), 2)
               if len(sets[a] & sets[b]) / len(sets[a] | sets[b]) >= 0.7}  # fmt: skip
    joined = {(a, b) for a, b in combinations(range(len(texts)), 2) if roots[a] == roots[b]}
    assert joined == similar and len(similar) == 60


def test_a_signature_depends_on_the_set_alone():
    assert signatures([[3, 1, 2]]) == signatures([[1, 2, 3, 3]])
    assert signatures([]) == []


def test_scripts_without_spaces_have_words_too():
    assert words("東京 tower") == ["tower", "京", "東"]
    assert word_count("a b a 東京") == 5
