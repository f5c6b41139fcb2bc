"""The task `supervision`: what `inspect` finds of the same rows, stored, with rows token by token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from foretune.flows.commands.inspection import dataset_settings
from foretune.flows.request import load_request
from foretune.storage.runs import Run
from foretune.tasks.inputs.sources import resolve_sources
from foretune.tasks.report.supervision import LARGEST, supervision_view, token_html
from foretune.tasks.samples.chat import load_tokenizer
from foretune.tasks.samples.dataset import TokenizerHandle, role_settings, samples
from foretune.tasks.samples.inspection import inspect_rows
from foretune.tasks.samples.supervision import pieces, seen_rows, tokens
from foretune.tasks.samples.supervision_pass import supervision
from foretune.tasks.samples.supervision_settings import SupervisionSettings

ROWS = [
    {"prompt": "Name a fruit.", "completion": "Cherry " * 12},
    {"prompt": "long " * 40, "completion": "never"},
    *({"prompt": f"How many is {n}?", "completion": f"{n}."} for n in range(30)),
]


@pytest.fixture
def made(tmp_path: Path, tiny_llama: Path):
    """`made(rows, "a.b=c", shown=20)` runs samples and supervision alone."""

    def make(rows: list[dict[str, Any]], *overrides: str, shown: int = 20, folder: Path = tiny_llama):
        data = tmp_path / "rows" / "train.jsonl"
        data.parent.mkdir(exist_ok=True)
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        request = tmp_path / "request.yaml"
        request.write_text(json.dumps({"dataset": {"path": str(data.parent)}, "model": {"name_or_path": str(folder)}}))
        wanted = load_request(str(request), list(overrides))
        sources = resolve_sources(wanted.dataset, wanted.model, None)
        run, own = Run(str(tmp_path / "root"), "r"), role_settings(wanted.dataset, "train")
        shared: dict[str, Any] = {
            "source": sources.rows["train"],
            "tokenizer": TokenizerHandle(source=sources.tokenizer),
        }
        table = samples.fn(run=run, role="train", settings=own, **shared)
        ref = supervision.fn(
            run=run,
            samples=table,
            unread_splits=list(sources.unread_splits),
            dataset=own,
            settings=SupervisionSettings(rows=shown),
            **shared,
        )
        return run.store.open(ref), run.store.open(table).arrow("samples.parquet")

    return make


def test_counts_and_findings_are_those_of_inspect_for_the_same_rows(made, tiny_llama):
    held, table = made(ROWS, "dataset.max_length=64")
    numbers = sorted(table["row"].to_pylist())
    rows = [ROWS[number] for number in numbers]
    alone = inspect_rows(rows, tiny_llama, dataset_settings("rows.jsonl", ["dataset.max_length=64"]))
    summary = held.json("summary.json")
    assert {name: summary[name] for name in alone.seen.counts()} == alone.seen.counts()
    stored = held.arrow("findings.parquet").to_pylist()
    found = {each.rule: (each.severity, each.rows and [numbers[at] for at in each.rows]) for each in alone.findings}
    assert {each["rule"]: (each["severity"], each["rows"]) for each in stored} == found
    assert {"no_trained_tokens", "answer_cut"} <= found.keys()


def test_rows_of_findings_are_shown_first_then_by_id(made):
    held, table = made(ROWS, "dataset.max_length=64", shown=5)
    stored = held.arrow("findings.parquet").to_pylist()
    wanted = [each["rows"][0] for each in stored]
    by_id = [row for row in table["row"].to_pylist() if row not in wanted]
    assert held.arrow("sequences.parquet")["row"].to_pylist() == [*wanted, *by_id[: 5 - len(wanted)]]


def test_signals_are_raised_for_what_no_other_pass_says(made, tiny_llama, tmp_path):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    config = folder / "tokenizer_config.json"
    endless = "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": endless}))
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "validation.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    rows = [{"instruction": f"Say {n}.", "output": f"It is {n}."} for n in range(12)]
    held, table = made(rows, folder=folder)
    signals = {each["name"]: each for each in held.json("summary.json")["signals"]}
    assert signals.keys() == {"eos_not_trained", "splits_not_read"}
    assert signals["eos_not_trained"]["severity"] == "critical"
    assert signals["eos_not_trained"]["value"] == len(table)
    assert "validation" in signals["splits_not_read"]["advice"]


@given(text=st.text(max_size=60), cut=st.integers(2, 40), first=st.integers(0, 60), last=st.integers(0, 60))
@settings(max_examples=60)
def test_tokens_say_together_what_the_pieces_say(tiny_llama, text, cut, first, last):
    tokenizer = load_tokenizer(tiny_llama)
    row = {"prompt": "é 日", "completion": f" {text}"}
    wanted = dataset_settings("rows.jsonl", [f"dataset.max_length={cut}"])
    (sequence,) = seen_rows([row], tokenizer, wanted).rows[0].sequences
    assume(
        not tokenizer.backend.decode(sequence.ids[:cut], skip_special_tokens=False).endswith("\ufffd")
    )  # a cut character
    every = tokens(sequence, tokenizer, len(sequence.ids), 0)
    assert [each.id for each in every] == sequence.ids
    whole = "".join(piece.text for piece in pieces(sequence, tokenizer))
    assert "".join(each.text for each in every) == whole
    some = tokens(sequence, tokenizer, first, last)
    length = len(sequence.ids)
    assert [each.position for each in some] == [at for at in range(length) if at < first or at >= length - last]


def token(position: int, text: str, state: str = "trained", special: bool = False) -> dict[str, Any]:
    return {"row": 0, "sequence": "row", "position": position, "text": text, "state": state, "special": special}


def test_text_is_escaped_what_cannot_be_seen_is_spelled_and_marks_are_no_colours():
    html = token_html(
        [
            token(0, "<s>", "masked", True),
            token(1, "<script>alert(1)</script>\x1b\u202e", "masked"),
            token(2, "ok\n"),
            token(9, "gone", "cut_off"),
        ]
    )
    assert str(html) == (
        "<span><em>&lt;s&gt;</em>&lt;script&gt;alert(1)&lt;/script&gt;\\x1b\\u202e</span><u>ok<i>↵</i>\n</u>"
        " …(6 tokens not shown)… <s>gone</s>"
    )


def test_the_page_has_a_bound_whatever_the_rows_hold():
    sequences = [{"row": row, "sequence": "row", "trained": 400, "masked": 0, "cut_off": 0} for row in range(100)]
    every = [token(at, "<&\u202e" * 20) | {"row": row} for row in range(100) for at in range(400)]
    view = supervision_view([], sequences, every, {})
    assert sum(len(token_html(each.tokens).encode()) for each in view.sequences) <= LARGEST
    assert len(view.sequences) + view.left_out == 100 and view.left_out
