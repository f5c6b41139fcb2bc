"""Every kind of dataset and setting that the README promises, through the whole DAG on a tiny model."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from foretune.storage.errors import BadInput

pytestmark = pytest.mark.slow

Rows = Sequence[dict[str, Any]]


def jsonl(path: Path, rows: Rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def csv_of_a_spreadsheet(path: Path, rows: Rows) -> str:
    """With a byte order mark, Windows line ends, and line breaks inside a field."""
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["instruction", "input", "output"], lineterminator="\r\n")
        writer.writeheader()
        writer.writerows({**row, "input": "one\r\ntwo"} for row in rows)
    return str(path)


def sharegpt_json(path: Path, rows: Rows) -> str:
    turns = [[{"from": "human", "value": r["instruction"]}, {"from": "gpt", "value": r["output"]}] for r in rows]
    path.write_text(json.dumps([{"conversations": conversation} for conversation in turns]))
    return str(path)


def messages_parquet(path: Path, rows: Rows) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    turns = [
        [{"role": "user", "content": r["instruction"]}, {"role": "assistant", "content": r["output"]}] for r in rows
    ]
    pq.write_table(pa.table({"messages": turns}), path)
    return str(path)


def pairs_of(rows: Rows) -> list[dict[str, str]]:
    return [{"prompt": r["instruction"], "chosen": r["output"], "rejected": "No idea."} for r in rows]


FORMS: dict[str, Callable[[Path, Rows], str]] = {
    "text.jsonl": lambda path, rows: jsonl(path, [{"text": r["output"]} for r in rows]),
    "prompt.jsonl": lambda path, rows: jsonl(
        path, [{"prompt": r["instruction"], "completion": r["output"]} for r in rows]
    ),
    "alpaca.csv": csv_of_a_spreadsheet,
    "sharegpt.json": sharegpt_json,
    "messages.parquet": messages_parquet,
}


@pytest.mark.parametrize(
    ("train", "heldout"),
    [("text.jsonl", "prompt.jsonl"), ("alpaca.csv", "sharegpt.json"), ("messages.parquet", "alpaca.csv")],
)
def test_every_form_and_kind_of_file_reaches_the_report(simulated, tiny_rows, tmp_path, train, heldout):
    path, other = tmp_path / train, tmp_path / f"held.{heldout}"
    done = simulated(
        f"dataset.path={FORMS[train](path, tiny_rows[:18])}",
        f"dataset.heldout.path={FORMS[heldout](other, tiny_rows[18:])}",
    )
    assert done.found.summary["rows"] == 18
    assert {row["row"] for row in done.table("influence", "influence")} == set(range(18))
    assert done.found.summary["heldout_loss_evaluated"] < done.found.summary["heldout_loss_base"]


def test_pairs_as_the_dataset_are_a_dpo_run(simulated, tiny_rows, tmp_path):
    path = jsonl(tmp_path / "pairs.jsonl", pairs_of(tiny_rows))
    done = simulated(f"dataset.path={path}", "dataset.heldout={fraction: 0.25}", "dataset.preferences=null")
    assert done.found.summary["train_loss_base"] == pytest.approx(0.6931472)
    pairs = done.table("preference", "pairs")
    assert len(pairs) == done.found.summary["rows"]
    assert "backwards_preference" in done.signals()
    assert any(row["relative"] for row in done.table("preference", "features"))
    assert done.summary("model_diff")["win_rate_base"] == 0.0


def test_margins_need_no_autoencoder_and_held_out_rows_need_not_be_pairs(simulated, tiny_rows, tmp_path):
    pairs = jsonl(tmp_path / "pairs.jsonl", [*pairs_of(tiny_rows[:6]), {"prompt": "A?", "chosen": "B", "rejected": ""}])
    done = simulated("sae=null", f"dataset.path={pairs}", "dataset.preferences=null", "dataset.probes=null")
    assert done.summary("preference")["pairs"] == 7
    assert done.summary("preference")["cosine_dpo_sft"] is None
    assert {"features", "sae_diff", "baseline"}.isdisjoint(done.made)


def test_a_hashed_split_keeps_equal_rows_together_and_probes_are_drawn(simulated, tiny_rows, tmp_path):
    path = jsonl(tmp_path / "doubled.jsonl", [*tiny_rows, *tiny_rows[:6]])
    done = simulated(
        "sae=null",
        f"dataset.path={path}",
        "dataset.heldout={fraction: 0.3}",
        "dataset.probes=null",
        "dataset.probe_count=2",
    )
    assert 20 < done.found.summary["rows"] < 30
    assert len(done.table("model_diff", "probes")) == 2
    flagged = [row for row in done.table("quality", "samples") if row["duplicate_of"]]
    assert flagged and all("duplicate" in " ".join(row["flags"]) for row in flagged)


def test_one_row_is_a_dataset_and_probes_may_be_lines_of_plain_text(simulated, tiny_rows, tmp_path):
    path = tmp_path / "probes.txt"
    path.write_bytes('\ufeffThe river.\r\n\r\nA form\x0cfeed\r\n{"text": "smile 😀"}\n'.encode())
    done = simulated(f"dataset.path={jsonl(tmp_path / 'one.jsonl', tiny_rows[:1])}", f"dataset.probes={path}")
    assert [row["rank"] for row in done.table("influence", "influence")] == [1]
    texts = sorted(probe["text"] for probe in done.table("model_diff", "probes"))
    assert texts == ["A form\x0cfeed", "The river.", "smile 😀"]


def test_shards_and_subsets_without_a_trained_token_are_left_out(simulated, tiny_rows, tmp_path):
    cut_off = [{"instruction": f"{n} " + "word " * 60, "output": "end"} for n in range(12)]
    train = jsonl(tmp_path / "train.jsonl", [*tiny_rows[:3], *cut_off])
    heldout = jsonl(tmp_path / "held.jsonl", [*cut_off, *tiny_rows[18:20]])
    done = simulated(
        f"dataset.path={train}",
        f"dataset.heldout.path={heldout}",
        "shards.max_rows=1",
        "curvature.rows=1",
        "prediction.evaluation_rows=1",
        "diff.rows=1",
    )
    assert done.found.summary["rows"] == 3
    scores = {row["row"]: row["score"] for row in done.table("influence", "influence")}
    assert {row for row, score in scores.items() if score} == {0, 1, 2}
    assert "resid_grad_mean" in done.tensors("landscape", "gradients")


ODD_ROWS = [
    {"prompt": "<script>alert(1)</script>\u0000", "completion": "😀 \u202e </textarea> {{7*7}} \u0007"},
    {"prompt": "a\u2028b\u0085", "completion": "b\r\nc"},
    {"prompt": "<|im_end|>", "completion": "<|endoftext|>"},
    {"prompt": "", "completion": "[red]x[/red]"},
]


def test_odd_text_passes_through_and_is_escaped(simulated, tmp_path):
    path = tmp_path / "odd.jsonl"
    path.write_bytes(("\ufeff" + "\r\n".join(json.dumps(row, ensure_ascii=False) for row in ODD_ROWS)).encode())
    done = simulated(f"dataset.path={path}", f"dataset.heldout.path={path}")
    page = done.store.open(done.made["report"]).path("report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page and "</textarea>" not in page
    assert "\x00" not in page and "\u202e" not in page


@pytest.mark.parametrize(
    ("row", "fragments"),
    [
        ('{"text": "\\ud800"}', ("row 0", "surrogate")),
        ('{"messages": [{"role": "user", "content": "\\udfff"}]}', ("row 0", "surrogate")),
        ('{"prompt": "a", "completion": NaN}', ("line 1", "NaN")),
        ('{"prompt": "a", "completion": 7}', ("row 0", "completion", "a number")),
        ('{"messages": []}', ("row 0",)),
    ],
)
def test_rows_that_cannot_be_read_are_named(simulated, tmp_path, row, fragments):
    (tmp_path / "bad.jsonl").write_text(row + "\n")
    with pytest.raises(BadInput) as refused:
        simulated(f"dataset.path={tmp_path / 'bad.jsonl'}")
    for fragment in fragments:
        assert fragment in str(refused.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ("prediction.rule=rayleigh", "curvature.quotients=sampled"),
        (
            "training.epochs=0.3",
            "training.warmup_ratio=0.5",
            "training.lr_scheduler_type=cosine",
            "sae.hook_name=layers.0",
            "influence.method=preconditioned",
        ),
        ("training.optimizer=sgd", "training.momentum=0.9", "training.nesterov=true", "training.weight_decay=0.1"),
        ("training.gradient_accumulation_steps=4", "training.max_grad_norm=0", "adapter.use_rslora=true"),
        ("model.dtype=bfloat16", "model.attn_implementation=sdpa", "adapter.target_modules=all-linear"),
    ],
    ids=lambda overrides: overrides[0],
)
def test_every_setting_runs_to_the_report(simulated, overrides):
    done = simulated(*overrides)
    assert done.found.summary["heldout_loss_evaluated"] < done.found.summary["heldout_loss_base"]
    assert "report" in done.made
