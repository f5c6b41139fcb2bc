"""Two answers side by side: their difference, and what each model thinks of the other's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from foretune.flows.request import load_request
from foretune.storage.artifacts import ArtifactStore
from foretune.tasks.behaviour.token_diff import token_diff
from foretune.tasks.report.answers import INSERTED, REMOVED, answers_view, clipped, listed_answers
from tests.dag import Simulated, run_dag


def words(first: str, second: str) -> list[tuple[str, str]]:
    found = token_diff(first.split(), second.split())  # pyright: ignore[reportArgumentType]
    spans = []
    for span in found.spans:
        side, text = (span.second, second) if span.kind == "inserted" else (span.first, first)
        spans.append((span.kind, " ".join(text.split()[slice(*side)])))
    return spans


def test_the_difference_of_two_answers() -> None:
    assert words("hold the pin now", "press the pin") == [
        ("removed", "hold"), ("inserted", "press"), ("equal", "the pin"), ("removed", "now"),
    ]  # fmt: skip
    diff = token_diff([1, 2, 3, 4], [1, 2, 5])
    assert (diff.first_difference, diff.equal_share, diff.equal) == (2, 0.5, False)
    assert token_diff([1, 2], [1, 2, 3]).first_difference == 2 == token_diff([1, 2, 3], [1, 2]).first_difference
    assert token_diff([], []).equal and token_diff([], []).equal_share == 1.0


def test_the_nats_are_those_of_both_models_opened_apart(first: Simulated) -> None:
    from transformers import AutoModelForCausalLM

    request = load_request(str(Path(first.step.run.root).parent / "request.yaml"))
    folders = [request.model.name_or_path, first.store.open(first.made["checkpoint"]).folder()]
    base, new = (AutoModelForCausalLM.from_pretrained(each, attn_implementation="eager") for each in folders)
    prompts = {row["prompt_id"]: row["input_ids"] for row in first.table("prompts", "prompts")}
    said = {name: greedy(first, f"{name}_answers") for name in ("base", "predicted")}
    rows = first.table("answers", "answers")
    assert len(rows) == len(prompts) == 6

    def log_probabilities(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *answer]])).logits[0].double()
        return logits[len(prompt) - 1 : -1].log_softmax(-1)

    for row in rows:
        prompt = prompts[row["prompt_id"]]
        for name, own, other in (("base", base, new), ("predicted", new, base)):
            answer = said[name][row["prompt_id"]]
            taken = torch.arange(len(answer)), torch.tensor(answer)
            p, q = (log_probabilities(model, prompt, answer) for model in (own, other))
            crossed = {"base": "base_nats_predicted", "predicted": "predicted_nats_base"}[name]
            assert row[f"{name}_nats"] == pytest.approx(-float(p[taken].sum()), rel=1e-4)
            assert row[crossed] == pytest.approx(-float(q[taken].sum()), rel=1e-4)
            if name == "base":
                assert row["kl"] == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-3, abs=1e-5)
        assert row["equal"] == (said["base"][row["prompt_id"]] == said["predicted"][row["prompt_id"]])
        for name in ("base", "predicted"):
            assert "".join(span[name] for span in row["spans"]) == row[name]
    summary = first.summary("answers")
    assert summary["changed"] == sum(not row["equal"] for row in rows) and summary["few"]


def greedy(simulated: Simulated, name: str) -> dict[str, list[int]]:
    return {row["prompt_id"]: row["token_ids"] for row in simulated.table(name, "generations")}


def span(kind: str, base: str, predicted: str) -> dict[str, str]:
    return {"kind": kind, "base": base, "predicted": predicted}


ROW = {
    "prompt": "p" * 1000, "origin": "held-out", "row": 3, "note": None, "cut_tokens": 2, "reference": None,
    "equal": False, "first_difference": 1, "base_stopped": "eos", "predicted_stopped": "length",
}  # fmt: skip


def test_a_difference_of_blanks_can_be_seen_and_a_secret_is_not_cut_in_two() -> None:
    spans = [span("equal", "a", "a"), span("removed", " \n", ""), span("inserted", "", "b")]
    view = answers_view([{**ROW, "spans": spans, "base": "a \n", "predicted": "ab"}], {"changed": 1, "few": True})
    (pair,) = view.pairs
    assert [(each.text, each.mark) for each in pair.base] == [("a", 0), ("␣↵\n", REMOVED)]
    assert [(each.text, each.mark) for each in pair.predicted] == [("a", 0), ("b", INSERTED)]
    assert pair.notes == ("its first 2 tokens are left out: the model has no room for them",)
    key = "ghp_" + "a1B2c3D4e5F6g7H8i9J0" * 2
    halves = [span("equal", key[:20], key[:20]), span("removed", key[20:], "")]
    view = answers_view([{**ROW, "spans": halves, "base": key, "predicted": key[:20]}], {"changed": 1, "few": True})
    assert [each.text for each in view.pairs[0].base] == [key]  # whole: what shows it sees that it is a secret


def test_what_is_listed_is_bounded() -> None:
    rows = [{**ROW, "spans": [], "base": "x" * 9000, "predicted": "", "row": number} for number in range(40)]
    listed = listed_answers(rows)
    assert len(listed) == 20 and max(len(text) for each in listed for text in (each["prompt"], each["base"])) == 600
    view = answers_view(
        [{**row, "spans": [span("equal", "x" * 9000, "")]} for row in rows], {"changed": 0, "few": False}
    )
    assert sum(len(each.text) for each in clipped(view.pairs[0].base, 10)) == 10


@pytest.mark.slow
def test_a_second_version_of_the_dataset_does_not_ask_the_base_again(warm_request: Path) -> None:
    train, held = (warm_request.parent / name for name in ("train.jsonl", "heldout.jsonl"))
    train.write_text("".join(train.read_text().splitlines(keepends=True)[:-2]))
    held.write_text(held.read_text().replace("night shift", "day shift"))  # other answers to the same prompts
    made = run_dag(warm_request)
    roles = [
        ArtifactStore(made.step.run.root).manifest(ref.task, ref.key).inputs["role"]
        for task, ref in made.step.steps
        if task == "generations" and not ref.cached
    ]
    assert roles == ["predicted"]


@pytest.mark.slow
def test_a_file_of_prompts_is_asked_and_counts_by_what_it_says(warm_request: Path) -> None:
    prompts = warm_request.parent / "prompts.txt"
    prompts.write_text("Who are you?\nWhere is the river?\n")
    made = run_dag(warm_request, f"answers.prompts={prompts}", "answers.rows=0")
    assert [row["prompt"] for row in made.table("answers", "answers")] == ["Who are you?", "Where is the river?"]
    prompts.rename(warm_request.parent / "renamed.txt")
    again = run_dag(warm_request, f"answers.prompts={warm_request.parent / 'renamed.txt'}", "answers.rows=0")
    assert again.computed == []
    silent = run_dag(warm_request, "answers.rows=0")
    assert "answers" not in silent.made and "report" in silent.computed
