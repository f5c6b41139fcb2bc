"""Our tokens and labels against TRL's trainers themselves, to the token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trl

from foretune.tasks.samples.chat import load_tokenizer
from foretune.tasks.samples.table import DatasetSettings, read_samples

MARKED = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Renders the prompt alone otherwise than before an answer, as Gemma and DeepSeek do.
DIVERGING = MARKED.replace("assistant\\n' }}{% endif %}", "assistant\\n<think>' }}{% endif %}")

TURNS = [
    [
        ("user", "Où est la gare ?"),
        ("assistant", "Tout droit."),
        ("user", "Merci"),
        ("assistant", "De rien."),
    ],
    [("system", "Be brief."), ("user", "2 + 2?"), ("assistant", "4")],
    [("user", "long " * 60), ("assistant", "x")],
    [("user", "Name a colour."), ("assistant", "red " * 80)],
]


def messages(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


PAIRS = [
    ("Capital of France?", " Paris"),
    ("ends in eos", " done<|im_end|>"),
    ("p " * 100, "cut away"),
    ("", "alone"),
]
ROWS: dict[str, list[dict[str, Any]]] = {
    "text": [{"text": "plain text"}, {"text": "has its end<|im_end|>"}, {"text": "ünï " * 80}, {"text": ""}],
    "messages": [{"messages": messages(turns)} for turns in TURNS],
    "prompt_completion": [{"prompt": prompt, "completion": completion} for prompt, completion in PAIRS],
    "chat_prompt_completion": [{"prompt": messages(turns[:-1]), "completion": messages(turns[-1:])} for turns in TURNS],
    "sharegpt": [{"conversations": [{"from": role, "value": content} for role, content in turns]} for turns in TURNS],
    "pairs": [{"prompt": p, "chosen": c, "rejected": " no"} for p, c in PAIRS],
    "implicit_pairs": [
        {
            "chosen": "\n\nHuman: hi\n\nAssistant: hello there",
            "rejected": "\n\nHuman: hi\n\nAssistant: go away",
        },
        {"chosen": "one two three", "rejected": "one two four five"},
        {"chosen": "same start", "rejected": "same start and more"},
    ],
    "chat_pairs": [
        {"prompt": messages(t[:-1]), "chosen": messages(t[-1:]), "rejected": messages([("assistant", "No.")])}
        for t in TURNS
    ]
    # With the diverging template this answer shares more of the rendered prompt than the rejected one.
    + [
        {
            "prompt": messages([("user", "Why?")]),
            "chosen": messages([("assistant", "<think>Because.")]),
            "rejected": messages([("assistant", "No.")]),
        }
    ],
    "implicit_chat_pairs": [
        {"chosen": messages(turns), "rejected": messages([*turns[:-1], ("assistant", "No.")])} for turns in TURNS
    ],
}
SUPERVISED = [name for name in ROWS if "pairs" not in name]


@pytest.fixture(scope="module")
def folders(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny Llama with its own, the marking and the diverging template."""
    import shutil

    made = {"plain": tiny_llama}
    for name, template in (("marked", MARKED), ("diverging", DIVERGING)):
        made[name] = Path(shutil.copytree(tiny_llama, tmp_path_factory.mktemp(name) / "model"))
        config = json.loads((made[name] / "tokenizer_config.json").read_text())
        config["chat_template"] = template
        (made[name] / "tokenizer_config.json").write_text(json.dumps(config))
    return made


def numbered(rows: list[dict[str, Any]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list([{"number": number, **row} for number, row in enumerate(rows)])


def training(folder: Path, output: Path, kind: str, rows: list[dict[str, Any]], **config: Any) -> Any:
    """A trainer of TRL after it has prepared its dataset."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trainer, settings = {"sft": ("SFTTrainer", "SFTConfig"), "dpo": ("DPOTrainer", "DPOConfig")}[kind]
    arguments = getattr(trl, settings)(
        output_dir=str(output), use_cpu=True, bf16=False, report_to=[], disable_tqdm=True, **config
    )
    return getattr(trl, trainer)(
        model=AutoModelForCausalLM.from_pretrained(folder),
        args=arguments,
        train_dataset=numbered(rows),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )


def ours(folder: Path, rows: list[dict[str, Any]], role: Any = "train", **settings: Any) -> dict[int, dict[str, Any]]:
    table = read_samples(
        rows,
        load_tokenizer(folder),
        DatasetSettings(path="rows", heldout={"path": "other"}, preferences="pairs", **settings),
        role,
    )
    return {row["row"]: row for row in table.to_pylist()}


@pytest.mark.parametrize("max_length", [64, None])
@pytest.mark.parametrize("template", ["plain", "diverging"])
@pytest.mark.parametrize("form", SUPERVISED)
def test_supervised_rows_equal_trl(folders, tmp_path, form, template, max_length):
    trained = training(folders[template], tmp_path, "sft", ROWS[form], max_length=max_length).train_dataset
    assert_supervised_equal(trained, ours(folders[template], ROWS[form], max_length=max_length))


@pytest.mark.parametrize("form", ["messages", "chat_prompt_completion"])
def test_assistant_only_masks_equal_trl(folders, tmp_path, form):
    trained = training(
        folders["marked"], tmp_path, "sft", ROWS[form], max_length=100, assistant_only_loss=True
    ).train_dataset
    assert_supervised_equal(trained, ours(folders["marked"], ROWS[form], max_length=100, assistant_only_loss=True))


def test_training_on_the_prompt_too_equals_trl(folders, tmp_path):
    rows = ROWS["chat_prompt_completion"]
    trained = training(folders["plain"], tmp_path, "sft", rows, completion_only_loss=False).train_dataset
    assert_supervised_equal(trained, ours(folders["plain"], rows, completion_only_loss=False))


def assert_supervised_equal(trained: Any, samples: dict[int, dict[str, Any]]) -> None:
    kept = {row["number"]: row for row in trained}
    labelled = {number for number, sample in samples.items() if any(sample["loss_mask"])}
    assert set(kept) == labelled
    for number, row in kept.items():
        sample = samples[number]
        assert sample["input_ids"] == row["input_ids"]
        assert sample["loss_mask"] == [label != -100 for label in row["labels"]]


@pytest.mark.parametrize("max_length", [64, 1024])
@pytest.mark.parametrize("template", ["plain", "diverging"])
@pytest.mark.parametrize("form", [name for name in ROWS if "pairs" in name])
def test_preference_rows_equal_trl(folders, tmp_path, form, template, max_length):
    trainer = training(folders[template], tmp_path, "dpo", ROWS[form], max_length=max_length)
    samples = ours(folders[template], ROWS[form], "preferences", max_length=max_length)
    kept = {row["number"] for row in trainer.train_dataset}
    assert kept == {number for number, sample in samples.items() if any(sample["loss_mask"])}
    for row in trainer.train_dataset:
        sample = samples[row["number"]]
        batch = trainer.data_collator([row])
        for position, part in enumerate((("input_ids", "loss_mask"), ("rejected_ids", "rejected_mask"))):
            seen = batch["attention_mask"][position].bool()
            assert sample[part[0]] == batch["input_ids"][position][seen].tolist()
            assert sample[part[1]] == batch["completion_mask"][position][seen].bool().tolist()
