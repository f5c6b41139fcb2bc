"""One prompt to both models, and the amplified difference against its two ends."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from foretune.flows.commands.ask import answered, base_model, check_numbers, read_prompt
from foretune.storage.errors import BadInput
from foretune.storage.results import artifact_of
from foretune.storage.runs import Run
from foretune.tasks.behaviour.amplification import amplified
from foretune.tasks.behaviour.answer_settings import GenerationSettings
from foretune.tasks.behaviour.asked_model import asked_model
from foretune.tasks.behaviour.asking import Question
from foretune.tasks.loading.continuation import continued
from tests.dag import Simulated
from tests.flows.test_command_line import assert_bad_input, foretune

SHORT = GenerationSettings(max_new_tokens=12)


@pytest.fixture(scope="module")
def run(first: Simulated, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The tiny run with what a finished one keeps beside it."""
    found, root = first.step.run, tmp_path_factory.mktemp("asked") / "root"
    shutil.copytree(found.root, root)
    kept = {name: {"uri": ref.uri, "sha256": ref.sha256, "cached": False} for name, ref in first.made.items()}
    request = (Path(found.root).parent / "request.yaml").read_text()
    asked = Run(str(root), "20260101-000000-tiny-asked")
    asked.write_request(request)
    asked.write_result({"run_id": asked.run_id, "status": "completed", "artifacts": kept})
    return asked


@pytest.fixture(scope="module")
def models(run: Run) -> tuple[Any, Any]:
    checkpoint = artifact_of(run, "checkpoint")
    model = base_model(run, checkpoint)
    return asked_model(run, model, None).loaded, asked_model(run, model, checkpoint).loaded


PROMPTS = ([257, 65, 66, 67], list(range(40, 90)), [1])


@pytest.mark.parametrize("prompt", PROMPTS)
def test_alpha_0_is_the_base_and_alpha_1_the_predicted_model(models, prompt) -> None:
    base, predicted = models
    for alpha, wanted in ((0.0, base), (1.0, predicted)):
        (plain,) = continued(wanted, [prompt], 24, [258])
        assert amplified(base, predicted, prompt, alpha, 24, [258]) == plain


def test_an_alpha_is_greedy_over_the_mixed_logits_of_what_either_model_finds_plausible(models) -> None:
    base, predicted = models
    prompt, alpha = PROMPTS[1], 30.0
    made = amplified(base, predicted, prompt, alpha, 16, [258])
    wanted = list(prompt)
    for _ in made:  # no cache, in double precision
        with torch.no_grad():
            first, second = (each.model(torch.tensor([wanted])).logits[0, -1].double() for each in models)
        likely = [each.softmax(-1) >= 0.1 * each.softmax(-1).max() for each in (first, second)]
        mixed = (first + alpha * (second - first)).where(likely[0] | likely[1], -torch.inf)
        wanted.append(int(mixed.argmax()))
    assert made == wanted[len(prompt) :]
    assert made != continued(predicted, [prompt], 16, [258])[0]


def test_both_models_and_a_third_answer(run: Run) -> None:
    found = answered(run, Question("What is the red lamp?", "Be short.", 1.0, SHORT))
    assert [each["of"] for each in found["answers"]] == ["base", "predicted", "amplified"]
    base, predicted, third = found["answers"]
    assert third["token_ids"] == predicted["token_ids"]
    assert found["equal"] == (base["token_ids"] == predicted["token_ids"])
    assert found["rendered"] == (
        "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nWhat is the red lamp?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_draws_are_repeated_by_their_seed(run: Run) -> None:
    drawn = SHORT.model_copy(update={"samples": 2, "seed": 5, "temperature": 2.0})
    once, again = (answered(run, Question("Where?", None, None, drawn)) for _ in range(2))
    assert once == again
    texts = [tuple(each["token_ids"]) for each in once["answers"] if each["of"] == "base"]
    assert len(texts) == 3 and len(set(texts)) == 3


def test_what_cannot_be_asked_is_one_line(run: Run) -> None:
    for question, words in (
        (Question("  ", None, None, SHORT), "the prompt is empty"),
        (Question("a" * 600, None, None, SHORT), "600|6.. tokens .* 512 positions; shorten the prompt"),
        (Question("a" * 490, None, None, GenerationSettings(max_new_tokens=400)), "lower --max-new-tokens"),
    ):
        with pytest.raises(BadInput, match=words):
            answered(run, question)
    for alpha, temperature in ((float("nan"), 1), (float("inf"), 1), (None, 0), (None, float("nan"))):
        with pytest.raises(BadInput, match="give a number"):
            check_numbers(alpha, temperature)
    with pytest.raises(BadInput, match="shorten it"):
        read_prompt("a" * 1_000_001)
    with pytest.raises(BadInput, match="no UTF-8"):
        read_prompt("\udcff")


def test_another_model_in_the_base_place_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from foretune.tasks.inputs import sources

    monkeypatch.setattr(sources, "model_fingerprint", lambda folder: "0" * 64)
    with pytest.raises(BadInput, match="not the model any more"):
        answered(run, Question("Where?", None, None, SHORT))


def test_the_command(run: Run, tmp_path: Path) -> None:
    root = ["--root", run.root]
    said = foretune(
        "ask", run.run_id, "What is the \x1b[31mred lamp?", *root, "--alpha", "3", "--max-new-tokens", "8", "--json"
    )
    *lines, last = said.stdout.splitlines()
    found = json.loads(last)
    assert found["run_id"] == run.run_id and len(found["answers"]) == 3 and "\x1b[31m" not in said.stdout
    assert {"base", "predicted", "alpha 3"} <= set(lines)
    assert_bad_input(foretune("ask", "nothing-like-it", "Where?", *root), "nothing-like-it")
    assert_bad_input(foretune("ask", run.run_id, " ", *root), "the prompt is empty")
    assert_bad_input(foretune("ask", run.run_id, "Where?", *root, "--alpha", "nan"), "--alpha nan")
    bare = Run(run.root, "20260101-000000-tiny-bare")
    bare.write_result({"run_id": bare.run_id, "status": "completed", "artifacts": {}})
    assert_bad_input(foretune("ask", bare.run_id, "Where?", *root), "has no checkpoint")


def test_a_prompt_from_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    def piped(data: bytes) -> str:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        return read_prompt("-")

    assert piped("Wo?\nUnd wann, für wen?\n".encode()) == "Wo?\nUnd wann, für wen?"
    for data, words in (
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"\xff", "not UTF-8"),
        (b"a" * 4_000_002, "shorten it"),
    ):
        with pytest.raises(BadInput, match=words):
            piped(data)
