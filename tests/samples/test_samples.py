"""Ids, splits and the samples table."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from foretune.storage.errors import BadInput
from foretune.tasks.samples.columns import record_batch
from foretune.tasks.samples.forms import canonical_rows
from foretune.tasks.samples.heldout import HeldoutSettings, split
from foretune.tasks.samples.ids import identify
from foretune.tasks.samples.table import DatasetSettings, parse_probes, read_samples, samples_schema

WORDS = st.text(alphabet="abé \n", max_size=3)
ROWS = st.lists(st.fixed_dictionaries({"prompt": WORDS, "completion": WORDS}), min_size=1, max_size=12)
INSTRUCTIONS = [{"instruction": f"What is {n}?", "output": f"It is {n}."} for n in range(40)]


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return [row.sample_id for row in identify(canonical_rows(rows))]


def dataset(**changes: Any) -> DatasetSettings:
    return DatasetSettings(**{"path": "rows.jsonl", "heldout": {"path": "other.jsonl"}, **changes})


@given(ROWS, st.randoms(use_true_random=False))
def test_row_order_does_not_change_ids(rows, random):
    shuffled = random.sample(rows, len(rows))
    assert sorted(ids(rows)) == sorted(ids(shuffled))


@given(ROWS)
def test_every_row_has_an_id_of_its_own(rows):
    assert len(set(ids(rows))) == len(rows)


@given(ROWS, st.integers(0, 11))
def test_dropping_a_row_keeps_all_ids_but_one(rows, position):
    position %= len(rows)
    assert set(ids(rows[:position] + rows[position + 1 :])) < set(ids(rows))
    assert len(set(ids(rows)) - set(ids(rows[:position] + rows[position + 1 :]))) == 1


@given(ROWS)
def test_columns_that_are_not_read_do_not_change_ids(rows):
    assert ids(rows) == ids([{"id": n, "source": "x", **row} for n, row in enumerate(rows)])


def test_the_id_is_the_digest_of_the_content():
    import hashlib

    content = {"completion": "é", "form": "prompt_completion", "prompt": "a"}
    text = json.dumps(content, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
    assert ids([{"prompt": "a", "completion": "é"}]) == [hashlib.sha256(text.encode()).hexdigest()]


@given(ROWS, st.floats(0.05, 0.95), st.integers(0, 5))
def test_a_split_takes_every_row_once_and_keeps_equal_rows_together(rows, fraction, seed):
    identified = identify(canonical_rows(rows))
    heldout = HeldoutSettings(fraction=fraction, seed=seed)
    try:
        sides = [split(identified, heldout, side) for side in ("train", "heldout")]
    except BadInput:
        return
    assert sorted(row.sample_id for side in sides for row in side) == sorted(ids(rows))
    assert not {row.content_id for row in sides[0]} & {row.content_id for row in sides[1]}


def test_removing_rows_moves_no_other_row_across_the_split():
    identified = identify(canonical_rows(INSTRUCTIONS))
    heldout = HeldoutSettings(fraction=0.3)
    before = {row.sample_id for row in split(identified, heldout, "heldout")}
    after = {row.sample_id for row in split(identified[5:], heldout, "heldout")}
    assert after == before & {row.sample_id for row in identified[5:]}


def test_another_seed_is_another_split():
    identified = identify(canonical_rows(INSTRUCTIONS))
    sides = [split(identified, HeldoutSettings(fraction=0.3, seed=seed), "heldout") for seed in (0, 0, 1)]
    assert sides[0] == sides[1] != sides[2]


def test_the_share_that_is_held_out_is_near_the_fraction():
    rows = identify(canonical_rows([{"text": str(n)} for n in range(2000)]))
    held = len(split(rows, HeldoutSettings(fraction=0.25), "heldout"))
    assert abs(held - 500) < 4 * (2000 * 0.25 * 0.75) ** 0.5


def test_a_small_dataset_still_holds_something_out():
    rows = identify(canonical_rows(INSTRUCTIONS[:2]))
    assert [len(split(rows, HeldoutSettings(fraction=1e-9), side)) for side in ("train", "heldout")] == [1, 1]


def test_a_split_needs_two_different_rows():
    rows = identify(canonical_rows([{"text": "a"}, {"text": "a"}]))
    with pytest.raises(BadInput, match=r"2 equal rows cannot be split; give a held-out file"):
        split(rows, HeldoutSettings(), "train")


def test_heldout_rows_come_from_a_file_or_a_fraction():
    assert HeldoutSettings().fraction == 0.1
    assert HeldoutSettings(path="x").fraction is None
    with pytest.raises(ValidationError, match=r"heldout.path or heldout.fraction, not both"):
        HeldoutSettings(path="x", fraction=0.1)


def test_the_table_is_sorted_by_id_and_remembers_the_rows(chat):
    table = read_samples(INSTRUCTIONS, chat, dataset(), "train")
    assert table.schema.equals(samples_schema())
    assert table["sample_id"].to_pylist() == sorted(ids(INSTRUCTIONS))
    for sample in table.to_pylist():
        assert INSTRUCTIONS[sample["row"]]["instruction"] == sample["prompt"]
        assert INSTRUCTIONS[sample["row"]]["output"] == sample["completion"]
        assert len(sample["input_ids"]) == len(sample["loss_mask"]) == sample["full_tokens"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(random=st.randoms(use_true_random=False))
@pytest.mark.slow
def test_row_order_changes_nothing_but_the_row_numbers(chat, random):
    shuffled = random.sample(INSTRUCTIONS, len(INSTRUCTIONS))
    tables = [read_samples(rows, chat, dataset(), "train").drop_columns(["row"]) for rows in (INSTRUCTIONS, shuffled)]
    assert tables[0].equals(tables[1])


def test_ids_do_not_depend_on_the_tokenizer(chat, plain):
    tables = [read_samples(INSTRUCTIONS, tokenizer, dataset(), "train") for tokenizer in (chat, plain)]
    assert tables[0]["sample_id"].equals(tables[1]["sample_id"])
    assert not tables[0]["input_ids"].equals(tables[1]["input_ids"])


def test_train_and_heldout_share_a_file_without_sharing_a_row(chat):
    whole = dataset(heldout={"fraction": 0.3})
    train, heldout = (set(read_samples(INSTRUCTIONS, chat, whole, role)["sample_id"].to_pylist())
                      for role in ("train", "heldout"))  # fmt: skip
    assert train | heldout == set(ids(INSTRUCTIONS)) and not train & heldout


def test_probes_without_a_file_are_drawn_from_the_heldout_rows(chat):
    whole = dataset(heldout={"fraction": 0.5}, probe_count=3)
    probes, heldout = (read_samples(INSTRUCTIONS, chat, whole, role) for role in ("probes", "heldout"))
    assert len(probes) == 3
    assert set(probes["sample_id"].to_pylist()) < set(heldout["sample_id"].to_pylist())


def test_probes_are_objects_or_lines():
    text = '{"text": "one"}\n\n  two words \n42\n"quoted"\n'
    assert [probe["text"] for probe in parse_probes(text)] == ["one", "two words", "42", '"quoted"']


def test_a_role_sees_only_the_settings_it_reads():
    plenty = dataset(probes="p.jsonl", probe_count=5, heldout={"fraction": 0.2}, assistant_only_loss=True)
    fewer = plenty.model_copy(update={"probe_count": 9, "probes": None})
    assert plenty.for_role("train") == fewer.for_role("train")
    assert plenty.for_role("preferences") == dataset(heldout={}).for_role("preferences")


def test_equal_rows_are_numbered(chat):
    table = read_samples([INSTRUCTIONS[0]] * 3 + [INSTRUCTIONS[1]], chat, dataset(), "train")
    assert sorted(table["occurrence"].to_pylist()) == [0, 0, 1, 2]


def test_preferences_must_be_pairs(chat):
    with pytest.raises(BadInput, match=r"pairs.jsonl: its rows have the form prompt.completion"):
        read_samples(INSTRUCTIONS, chat, dataset(preferences="pairs.jsonl"), "preferences")


def test_a_dataset_without_a_trained_token_is_refused(chat):
    with pytest.raises(BadInput, match=r"none of the 40 rows has a trained token; raise dataset.max_length .4."):
        read_samples(INSTRUCTIONS, chat, dataset(max_length=4), "train")


def test_a_row_without_a_trained_token_stays_for_the_quality_pass(chat):
    rows = [*INSTRUCTIONS[:2], {"instruction": "x" * 90, "output": "y"}]
    table = read_samples(rows, chat, dataset(max_length=64), "train")
    assert [any(mask) for row, mask in sorted(zip(table["row"].to_pylist(), table["loss_mask"].to_pylist(),
                                                  strict=True))] == [True, True, False]  # fmt: skip


def test_no_rows_are_bad_input(chat):
    with pytest.raises(BadInput, match=r"train: the file holds no rows"):
        read_samples([], chat, dataset(), "train")


RECORDS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "s": st.none() | st.text(st.characters(exclude_categories=["Cs"])),
            "n": st.none() | st.integers(-(2**63), 2**63 - 1),
            "d": st.none() | st.floats(allow_nan=False),
            "b": st.none() | st.lists(st.booleans() | st.none()),
            "l": st.none() | st.lists(st.fixed_dictionaries({"k": st.text("xy"), "v": st.integers(0, 9)})),
        },
    ),
    max_size=9,
)


@given(RECORDS)
def test_columns_equal_arrows_own(records):
    pair = pa.struct({"k": pa.string(), "v": pa.int32()})
    schema = pa.schema(
        {"s": pa.string(), "n": pa.int64(), "d": pa.float64(), "b": pa.list_(pa.bool_()), "l": pa.list_(pair)}
    )
    batch = record_batch(records, schema)
    batch.validate(full=True)
    assert batch.equals(pa.RecordBatch.from_pylist(records, schema=schema))
