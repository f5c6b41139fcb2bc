"""The tokenizer and the chat template, read without torch and transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from foretune.storage.errors import BadInput
from foretune.tasks.samples.chat import ChatTokenizer, load_tokenizer
from foretune.tasks.samples.chat_template import ChatTemplateError, render_chat
from tests.conftest import write_tokenizer

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]


def test_reading_samples_imports_no_heavy_library(chat_folder: Path):
    program = f"""
import sys
from pathlib import Path
from foretune.tasks.samples.chat import load_tokenizer
from foretune.tasks.samples.table import DatasetSettings, read_samples
from foretune.tasks.quality.reduction import reduce_quality, shard_quality
from foretune.tasks.quality.settings import QualitySettings
rows = [{{"instruction": f"What is {{n}}?", "output": f"It is {{n}}."}} for n in range(9)]
table = read_samples(rows, load_tokenizer(Path({str(chat_folder)!r})), DatasetSettings(path="rows"), "train")
reduce_quality([shard_quality(table, QualitySettings())], QualitySettings())
print([name for name in ("torch", "transformers", "pandas", "prefect") if name in sys.modules])
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_a_conversation_is_rendered_and_tokenised_by_the_template(chat: ChatTokenizer):
    rendered = chat.render(TURNS[:1], add_generation_prompt=True)
    assert rendered.text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    (encoded,) = chat.encode_chats([rendered])
    specials = [chat.backend.token_to_id(token) for token in ("<|im_start|>", "<|im_end|>", "<|im_start|>")]
    assert [token for token in encoded.input_ids if token >= 256] == specials


def test_generation_blocks_tell_the_assistants_text_apart(chat: ChatTokenizer):
    template = (
        "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}!{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}\n{% endfor %}"
    )
    marked = ChatTokenizer(chat.backend, chat.special_tokens, {"default": template})
    rendered = marked.render([*TURNS, *TURNS])
    assert [rendered.text[start:end] for start, end in rendered.assistant] == ["Yo!", "Yo!"]
    (encoded,) = marked.encode_chats([rendered])
    kept = [token for token, mine in zip(encoded.input_ids, encoded.assistant_mask, strict=True) if mine]
    assert marked.backend.decode(kept) == "Yo!Yo!"
    assert marked.marks_assistant and not chat.marks_assistant


TEMPLATES = {
    "{{ messages | tojson }}": '[{"role": "user", "content": "<é>"}]',
    "{% for m in messages %}\n  {% if true %}\nx\n  {% endif %}\n{% endfor %}": "x\n",
    "{% for m in [1, 2, 3] %}{% if m == 2 %}{% break %}{% endif %}{{ m }}{% endfor %}": "1",
    "{% set ns = namespace(a=1) %}{% set ns.a = 2 %}{{ ns.a }}{{ dict(b=3).b }}": "23",
    "{{ bos_token }}{{ undefined_name }}{{ tools is none }}": "<s>True",
    "{{ strftime_now('%Y') | length }}": "4",
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates_see_what_transformers_gives_them(template):
    variables = {"bos_token": "<s>", "tools": None}
    assert render_chat(template, [{"role": "user", "content": "<é>"}], variables).text == TEMPLATES[template]


REFUSED = {
    "{{ raise_exception('roles must alternate') }}": "roles must alternate",
    "{{ ''.__class__.__mro__ }}": "unsafe|undefined",
    "{% set ns = namespace() %}{% set ns._x = 1 %}": "_x",
    "{{ messages.append(1) }}": "append",
    "{% if %}": "Expected an expression",
}


@pytest.mark.parametrize("template", REFUSED)
def test_templates_cannot_reach_out_of_the_sandbox(template):
    with pytest.raises(ChatTemplateError, match=REFUSED[template]):
        render_chat(template, TURNS, {})


def test_a_template_file_goes_before_the_one_in_the_config(tmp_path: Path):
    write_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.render(TURNS).text == "Hi"
    assert tokenizer.render(TURNS, tools=[{"name": "clock"}]).text == "tools"


def test_tokens_that_only_the_config_knows_are_added(tmp_path: Path):
    write_tokenizer(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["extra_special_tokens"] = ["<|tool|>"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_tokenizer(tmp_path).encode_texts(["<|tool|>"]) == [[259]]


def test_an_old_tokenizer_takes_its_eos_from_the_model(tmp_path: Path):
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "config.json").write_text('{"eos_token_id": [256, 258]}')
    assert load_tokenizer(tmp_path).eos_token == "<|endoftext|>"


def test_a_folder_without_a_tokenizer_is_bad_input(tmp_path: Path):
    with pytest.raises(BadInput, match=r"no tokenizer.json; save a fast tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(BadInput, match=r"tokenizer.json cannot be read"):
        load_tokenizer(tmp_path)


def test_a_conversation_needs_a_template(plain: ChatTokenizer):
    with pytest.raises(BadInput, match=r"no chat template; add chat_template.jinja"):
        plain.render(TURNS)
