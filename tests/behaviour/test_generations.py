"""Answers in batches against transformers' own generate, one prompt at a time; log-probabilities against a forward."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from foretune.tasks.behaviour.answer_settings import AnswerSettings, GenerationSettings
from foretune.tasks.behaviour.asked import Asked
from foretune.tasks.behaviour.asked_model import AskedModel, asked_model
from foretune.tasks.behaviour.generations import answers_of
from foretune.tasks.behaviour.token_texts import token_texts
from foretune.tasks.loading import ModelSettings, load_model
from foretune.tasks.samples.chat import load_tokenizer
from tests.dag import Simulated

LENGTHS = (3, 41, 17, 5, 29)  # unlike enough that a batch is padded


def opened(folder: Path) -> AskedModel:
    return AskedModel(load_model(folder, ModelSettings(name_or_path=str(folder), device="cpu")))


def drawn_prompts() -> list[Asked]:
    source = random.Random(3)
    return [
        Asked(tuple(source.randrange(256) for _ in range(length)), "", "file", row)
        for row, length in enumerate(LENGTHS)
    ]


def one_by_one(folder: Path, prompt: Asked, most: int) -> list[int]:
    """transformers by itself: a model opened apart, one prompt, no padding."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    ids = torch.tensor([prompt.input_ids])
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False)
    return made[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "gemma2", "gpt_neox"])
def test_a_batch_answers_as_transformers_does_prompt_by_prompt(folder_of: Callable[[str], Path], family: str) -> None:
    folder, prompts = folder_of(family), drawn_prompts()
    settings = GenerationSettings(max_new_tokens=24)
    answers = answers_of(opened(folder), prompts, load_tokenizer(folder), settings)
    assert [row["token_ids"] for row in answers] == [one_by_one(folder, each, 24) for each in prompts]
    small = answers_of(opened(folder), prompts, load_tokenizer(folder), settings.model_copy(update={"batch_tokens": 1}))
    assert [row["token_ids"] for row in small] == [row["token_ids"] for row in answers]


def test_log_probabilities_are_those_of_a_plain_forward(tiny_llama: Path) -> None:
    from transformers import AutoModelForCausalLM

    prompts = drawn_prompts()
    answers = answers_of(opened(tiny_llama), prompts, load_tokenizer(tiny_llama), GenerationSettings(max_new_tokens=9))
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, attn_implementation="eager")
    for prompt, row in zip(prompts, answers, strict=True):
        whole = torch.tensor([[*prompt.input_ids, *row["token_ids"]]])
        with torch.no_grad():
            logits = model(whole).logits[0].double().log_softmax(-1)
        start = len(prompt.input_ids) - 1
        wanted = [float(logits[start + at, token]) for at, token in enumerate(row["token_ids"])]
        assert row["logprobs"] == pytest.approx(wanted, abs=1e-4)


def test_an_answer_ends_at_every_token_that_ends_one(tiny_llama: Path) -> None:
    """The end is the tokenizer's too: a token that the model is sure to give is made the end."""
    asked, prompts = opened(tiny_llama), drawn_prompts()
    chat = load_tokenizer(tiny_llama)
    long = answers_of(asked, prompts, chat, GenerationSettings(max_new_tokens=12))
    assert {row["stopped"] for row in long} == {"length"} and {len(row["token_ids"]) for row in long} == {12}
    own = asked.loaded.model.generation_config
    own.eos_token_id = [long[0]["token_ids"][4], 258]
    try:
        short = answers_of(asked, prompts, chat, GenerationSettings(max_new_tokens=12))
    finally:
        own.eos_token_id = 258
    first = long[0]["token_ids"].index(long[0]["token_ids"][4])
    assert short[0]["stopped"] == "eos" and short[0]["token_ids"] == long[0]["token_ids"][: first + 1]
    assert len(short[0]["tokens"]) == len(short[0]["logprobs"]) == first + 1


def test_the_models_own_penalties_are_left_out(tiny_llama: Path) -> None:
    asked, chat = opened(tiny_llama), load_tokenizer(tiny_llama)
    wanted = answers_of(asked, drawn_prompts(), chat, GenerationSettings(max_new_tokens=12))
    own = asked.loaded.model.generation_config
    own.repetition_penalty, own.suppress_tokens = 5.0, [row["token_ids"][0] for row in wanted]
    try:
        assert answers_of(asked, drawn_prompts(), chat, GenerationSettings(max_new_tokens=12)) == wanted
        assert asked.loaded.model.generation_config is own
    finally:
        own.repetition_penalty = own.suppress_tokens = None


def test_a_draw_depends_on_its_seed_and_on_no_prompt_beside_it(tiny_llama: Path) -> None:
    asked, chat, prompts = opened(tiny_llama), load_tokenizer(tiny_llama), drawn_prompts()
    settings = GenerationSettings(max_new_tokens=8, samples=2, temperature=1.5, seed=7)
    together = answers_of(asked, prompts, chat, settings)
    alone = [row for each in prompts for row in answers_of(asked, [each], chat, settings)]
    assert [row["token_ids"] for row in together] == [row["token_ids"] for row in alone]
    other = answers_of(asked, prompts, chat, settings.model_copy(update={"seed": 8}))
    greedy = [row["token_ids"] for row in together if row["sample"] == 0]
    assert greedy == [row["token_ids"] for row in other if row["sample"] == 0]
    assert all(a["token_ids"] != b["token_ids"] for a, b in zip(together, other, strict=True) if a["sample"])


def test_draws_have_the_models_probabilities(tiny_llama: Path) -> None:
    from transformers import AutoModelForCausalLM

    asked, chat, prompt = opened(tiny_llama), load_tokenizer(tiny_llama), drawn_prompts()[1]
    settings = GenerationSettings(max_new_tokens=1, samples=3000, temperature=0.7)
    firsts = [row["token_ids"][0] for row in answers_of(asked, [prompt], chat, settings) if row["sample"]]
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, attn_implementation="eager")
    with torch.no_grad():
        wanted = (model(torch.tensor([prompt.input_ids])).logits[0, -1] / 0.7).softmax(-1)
    top = wanted.topk(3)
    for token, share in zip(top.indices.tolist(), top.values.tolist(), strict=True):
        assert firsts.count(token) / 3000 == pytest.approx(share, abs=4 * (share * (1 - share) / 3000) ** 0.5)


def test_settings_of_draws_are_no_part_of_a_greedy_answer() -> None:
    greedy = AnswerSettings().generation()
    assert greedy.identity() == AnswerSettings(seed=9, temperature=2, rows=3, batch_tokens=1).generation().identity()
    drawn = AnswerSettings(samples=1).generation().identity()
    assert drawn != greedy.identity() and drawn != AnswerSettings(samples=1, seed=9).generation().identity()


@pytest.mark.parametrize("seed", range(4))
def test_the_texts_of_the_tokens_are_the_text(tiny_llama: Path, seed: int) -> None:
    backend: Tokenizer = load_tokenizer(tiny_llama).backend
    source = random.Random(seed)
    ids: list[int] = []
    for _ in range(40):
        text = source.choice(["é", "漢", "😀", "a", " ", "\n", "e\u0301"])
        ids += backend.encode(text).ids if source.random() < 0.7 else [source.randrange(259)]
    texts = token_texts(backend, ids)
    assert len(texts) == len(ids) and "".join(texts) == backend.decode(ids, skip_special_tokens=True)


def test_weights_of_a_real_run_are_put_in_the_base_place(first: Simulated) -> None:
    """The predicted delta on the base answers as the checkpoint does."""
    run = first.step.run
    model = model_of(first)
    prompts = drawn_prompts()
    chat = load_tokenizer(model.folder(run))
    by_delta = asked_model(run, model, first.made["prediction"])
    assert by_delta.weights
    both = [
        [row["token_ids"] for row in answers_of(each, prompts, chat, GenerationSettings(max_new_tokens=12))]
        for each in (by_delta, asked_model(run, model, first.made["checkpoint"]))
    ]
    base = [
        row["token_ids"]
        for row in answers_of(asked_model(run, model, None), prompts, chat, GenerationSettings(max_new_tokens=12))
    ]
    assert both[0] == both[1] != base


def model_of(first: Simulated) -> Any:
    """The base model of a simulation."""
    from foretune.flows.request import load_request
    from tests.dag import called

    return called(load_request(str(Path(first.step.run.root).parent / "request.yaml"))).model
