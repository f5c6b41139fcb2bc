"""`foretune inspect`: rows as the trainer sees them, without a model; every finding by its rule, rows and remedy."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from foretune.flows.commands.inspection import LONGEST_PIECE, dataset_settings, print_inspection, wanted_rows
from foretune.flows.commands.terminal import Terminal
from foretune.storage.errors import BadInput
from foretune.tasks.loading.settings import ModelSettings
from foretune.tasks.samples.inspection import Inspection, inspect_dataset, inspect_rows
from foretune.tasks.samples.supervision import pieces
from foretune.tasks.samples.supervision_findings import RULES
from foretune.tasks.samples.trl_check import check_against_trl

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
OUTSIDE = (  # the end of the turn belongs to nobody: TRL warns of it
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\\n' }}"
    "{% endfor %}"
)
LAST_THOUGHT = CHATML.replace(
    "m.content", "(m.content if loop.last or '</think>' not in m.content else m.content.split('</think>')[1])"
)


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    """A tokenizer's files alone: there are no weights to open."""
    made = tmp_path / "model"
    made.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_llama / name, made)
    return made


def named(folder: Path, **config: Any) -> Path:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def turns(*texts: str) -> dict[str, Any]:
    return {"messages": [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]}


def found(folder: Path, rows: list[dict[str, Any]], *overrides: str) -> Inspection:
    return inspect_rows(rows, folder, dataset_settings("rows.jsonl", overrides))


def rows_by_rule(inspection: Inspection) -> dict[str, list[int] | None]:
    assert all(each.says and each.remedy and each.rule in RULES for each in inspection.findings)
    return {each.rule: each.rows for each in inspection.findings}


def test_tokens_are_counted_as_trained_masked_and_cut_off(folder):
    rows = [{"prompt": "ab", "completion": "cd"}, {"prompt": "abcdef", "completion": "g"}]
    seen = found(folder, rows, "dataset.max_length=6").seen
    assert [sequence.counts() for row in seen.rows for sequence in row.sequences] == [
        {"tokens": 5, "trained": 3, "masked": 2, "cut_off": 0},
        {"tokens": 8, "trained": 0, "masked": 6, "cut_off": 2},
    ]
    assert seen.counts() == {"tokens": 13, "trained": 3, "masked": 8, "cut_off": 2}


def test_pieces_are_the_text_with_special_tokens_by_themselves(folder):
    seen = found(folder, [{"prompt": "é 日", "completion": " ok"}]).seen
    (sequence,) = seen.rows[0].sequences
    shown = [(piece.text, piece.state, piece.special) for piece in pieces(sequence, seen.tokenizer)]
    assert shown == [("é 日", "masked", False), (" ok", "trained", False), ("<|im_end|>", "trained", True)]


RULED: dict[str, tuple[dict[str, Any], list[dict[str, Any]], list[str], list[int] | None]] = {
    "no_trained_tokens": ({}, [{"prompt": "long" * 9, "completion": "a"}, turns_ := {"prompt": "a", "completion": "b"}],
                          ["dataset.max_length=16"], [0]),
    "answer_cut": ({}, [{"prompt": "a", "completion": "b" * 40}, turns_], ["dataset.max_length=16"], [0]),
    "eos_not_trained": ({"chat_template": OUTSIDE}, [turns("a", "b")], ["dataset.assistant_only_loss=true"], [0]),
    "end_is_not_eos": ({"eos_token": "<|endoftext|>"}, [turns("a", "b")], [], [0]),
    "pad_is_eos": ({"pad_token": "<|im_end|>"}, [turns("a", "b")], [], None),
    "template_in_text": ({}, [{"text": "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>"}], [], [0]),
    "template_in_messages": (
        {}, [turns("a", "b"), turns("<|im_start|>user\na<|im_end|>", "b"), turns("a <|im_start|>?", "b")], [], [1],
    ),
    "template_drops_content": (
        {"chat_template": "{% for m in messages if m.role != 'system' %}{{ m.content }}<|im_end|>{% endfor %}"},
        [{"messages": [{"role": "system", "content": "Be brief."}, *turns("a", "b")["messages"]]}, turns("a", "b")],
        [], [0],
    ),
    "template_strips_thinking": (
        {"chat_template": LAST_THOUGHT},
        [turns("a", "<think>hm</think>b", "c", "d"), turns("a", "<think>hm</think>b")], [], [0],
    ),
    "template_changes_earlier_turns": (
        {"chat_template": LAST_THOUGHT},
        [turns("a", "b", "c", "d"), turns("a", "<think>hm</think>b", "c", "d")], [], [1],
    ),
    "template_drops_tool_calls": (
        {"chat_template": CHATML.replace("m.content", "m.content | default('')")},
        [{"messages": [{"role": "user", "content": "Rain?"},
                       {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": {}}}]}]}],
        [], [0],
    ),
    "prompt_differs_before_answer": (
        {"chat_template": CHATML.replace("assistant\\n' }}{% endif %}", "assistant\\n<think>' }}{% endif %}")},
        [{"prompt": turns("a")["messages"], "completion": [{"role": "assistant", "content": "b"}]}], [], [0],
    ),
    "no_generation_marks": ({}, [turns("a", "b")], ["dataset.assistant_only_loss=true"], None),
    "date_in_template": ({"chat_template": "{{ strftime_now('%d %b') }}" + CHATML}, [turns("a", "b")], [], None),
    "unread_columns": ({}, [turns("a", "b") | {"images": ["a.png"]}], [], None),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULED)
def test_a_rule_finds_its_rows_and_no_others(folder, rule):
    config, rows, overrides, expected = RULED[rule]
    (folder / "config.json").unlink()  # it names the token at which the model stops
    by_rule = rows_by_rule(found(named(folder, **config), rows, *overrides))
    assert rule in by_rule and by_rule[rule] == expected


def test_every_rule_is_shown_by_a_test():
    assert set(RULES) == {*RULED, "doubled_bos", "splits_not_read"}


def test_a_prompt_with_the_marks_of_its_template_as_text_is_no_fault(folder):
    prompt = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    assert rows_by_rule(found(folder, [{"prompt": prompt, "completion": "b<|im_end|>"}])) == {}


def test_a_bos_that_comes_twice_is_found(folder):
    from tokenizers import Tokenizer, processors

    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    token = "<|im_start|>"
    backend.post_processor = processors.TemplateProcessing(f"{token} $A", None, [(token, backend.token_to_id(token))])
    backend.save(str(folder / "tokenizer.json"))
    assert rows_by_rule(found(folder, [{"text": "a"}, {"text": f"{token}a"}]))["doubled_bos"] == [1]


def test_splits_beside_the_training_rows_are_found_until_they_are_read(folder, tmp_path):
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"prompt": "a", "completion": split}) + "\n")
    model = ModelSettings(name_or_path=str(folder))
    inspection = inspect_dataset(dataset_settings(str(tmp_path), []), model)
    assert rows_by_rule(inspection) == {"splits_not_read": None}
    assert "test and validation" in inspection.findings[0].says
    for held in (tmp_path, tmp_path / "validation.jsonl"):
        read = dataset_settings(str(tmp_path), [f"dataset.heldout.path={held}"])
        assert "holds test rows" in inspect_dataset(read, model).findings[0].says


def test_a_clean_dataset_has_no_finding(folder):
    assert found(folder, [turns("a", "b", "c", "d"), turns("e", "f")]).findings == []


def printed(inspection: Inspection, row: int | None = None, flag: str | None = None, width: int = 100) -> str:
    import io

    out = io.StringIO()
    print_inspection(Terminal(width=width, file=out), inspection, wanted_rows(inspection, row, flag), row is not None)
    return out.getvalue()


def test_without_colour_marks_say_what_is_trained_and_what_is_cut(folder):
    text = printed(found(folder, [{"prompt": "ab", "completion": "cd ef\x1b[31m"}], "dataset.max_length=5"))
    assert "  ab{+cd +}[-ef\\x1b[31m<|im_end|>-]" in text and "trained {+so+}" in text


def test_in_a_terminal_colours_say_it(folder, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = printed(found(folder, [{"prompt": "ab", "completion": "cd"}]))
    assert "\x1b[2mab\x1b[0m\x1b[32mcd\x1b[0m\x1b[1;32m<|im_end|>\x1b[0m" in text and "{+" not in text


def test_a_long_row_is_folded_with_a_note_and_shown_whole_when_it_is_asked_for(folder):
    inspection = found(folder, [{"prompt": "p", "completion": "x" * 5000}], "dataset.max_length=null")
    folded, whole = printed(inspection), printed(inspection, row=0)
    assert f"({5000 - LONGEST_PIECE:,} characters folded)" in folded and "x" * LONGEST_PIECE not in folded
    assert "x" * 5000 in whole and "folded" not in whole


def test_rows_of_a_rule_are_shown_and_how_many_more_there_are(folder):
    inspection = found(folder, [{"prompt": "a" * n, "completion": "b"} for n in range(1, 30)], "dataset.max_length=20")
    text = printed(inspection, flag="no_trained_tokens")
    assert "row 18 " not in text and "row 19  0 trained" in text and "3 of 10 rows shown" in text
    with pytest.raises(BadInput, match="--flag typo: no such rule; known are no_generation_marks"):
        inspection.rows_of("typo")
    with pytest.raises(BadInput, match="--row 99: the dataset has 29 rows, numbered from 0"):
        wanted_rows(inspection, 99, None)


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    line = [str(Path(sys.executable).parent / "foretune"), "inspect", *arguments]
    return subprocess.run(line, capture_output=True, text=True, cwd=cwd, timeout=120)


@pytest.mark.slow
def test_the_command_reads_a_dataset_and_no_weights(folder, tmp_path):
    """Weights that are no weights lie in the folder: whoever opened them would fail."""
    (folder / "model.safetensors").write_bytes(b"not weights")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(turns(f"a{n}", "b")) + "\n" for n in range(4)))
    done = command("rows.jsonl", "--model", str(folder), "--row", "2", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["rows"] == 4 and [row["row"] for row in result["shown"]] == [2] and result["findings"] == []
    (sequence,) = result["shown"][0]["sequences"]
    assert "".join(piece["text"] for piece in sequence["pieces"]).startswith("<|im_start|>user\na2<|im_end|>")
    assert sequence["tokens"] == sum(piece["tokens"] for piece in sequence["pieces"])
    (folder / "model.safetensors").unlink()
    assert command("rows.jsonl", "--model", str(folder), "--quiet", cwd=tmp_path).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--row", "0", "--flag", "pad_is_eos"], "--row and --flag: give one of them"),
        (["--set", "training.epochs=1"], "inspect reads a dataset alone; give dataset.NAME=VALUE"),
        (["--set", "dataset.max_lenght=1"], "the nearest key is max_length"),
    ],
)
def test_what_is_asked_wrongly_is_one_line(folder, tmp_path, arguments, words):
    (tmp_path / "rows.jsonl").write_text(json.dumps(turns("a", "b")) + "\n")
    done = command("rows.jsonl", "--model", str(folder), *arguments, cwd=tmp_path)
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "overrides"),
    [
        ([turns("a", "b", "c", "d"), turns("e" * 50, "f")], ["dataset.max_length=40"]),
        ([{"prompt": "a" * n, "completion": " b"} for n in range(1, 99)], ["dataset.max_length=32"]),
        ([{"prompt": "a", "chosen": "b", "rejected": "c" * n} for n in range(1, 9)], []),
        ([{"text": "a"}, {"text": ""}], []),
    ],
)
def test_the_check_compares_with_trls_collator_and_names_a_difference(folder, rows, overrides):
    inspection = found(folder, rows, *overrides)
    checked = check_against_trl(inspection.seen, inspection.folder)
    assert checked.differences == [] and len(checked.compared) == min(len(rows), 64)
    sequence = inspection.seen.rows[0].sequences[0]
    sequence.loss_mask[sequence.kept - 1] = False
    (difference,) = check_against_trl(inspection.seen, inspection.folder, [0]).differences
    assert difference.row == 0 and re.search(r"token \d+ is not trained on, by trl trained on", difference.says)


def test_the_check_without_trl_is_one_line(folder, monkeypatch):
    from importlib import metadata

    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    inspection = found(folder, [turns("a", "b")])
    monkeypatch.setattr(metadata, "version", absent)
    with pytest.raises(BadInput, match="--check compares with trl, which is not installed; pip install trl"):
        check_against_trl(inspection.seen, inspection.folder)
