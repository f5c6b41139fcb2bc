"""How long rows are, against the micro-batches that are made of them."""

from __future__ import annotations

import pytest

from foretune.tasks.landscape.prompt_gain import without_prompts
from foretune.tasks.samples.dataset import read_table
from foretune.tasks.samples.lengths import lengths_of
from foretune.tasks.samples.minibatches import minibatches


@pytest.mark.parametrize("most", [1, 200, 10_000])
@pytest.mark.parametrize("trained_only", [True, False])
def test_batches_are_those_that_a_pass_reads(first, most, trained_only):
    table = read_table(first.step.run, first.made["samples"])
    made = minibatches(table, most, trained_only=trained_only)
    assert lengths_of(table).batches(most, trained_only) == [(each.batch.padded_tokens, 0) for each in made]


def test_answers_alone_are_as_long_as_the_rows_without_their_prompts(first):
    table = read_table(first.step.run, first.made["samples"])
    assert lengths_of(table).alone == [len(ids) for ids in without_prompts(table)["input_ids"].to_pylist()]


def test_both_answers_of_a_pair_are_counted(first):
    pairs = next(made for task, made in first.step.steps if task == "preference")
    named = first.store.open(pairs).manifest.inputs["pairs"]
    table = read_table(first.step.run, next(made for _, made in first.step.steps if made.key == named["key"]))
    lengths = lengths_of(table)
    made = minibatches(table, 200)
    assert lengths.paired
    assert lengths.batches(200) == [(m.batch.padded_tokens, m.rejected.padded_tokens) for m in made]
    assert lengths.epoch == sum(lengths.answers) + sum(lengths.rejected)
