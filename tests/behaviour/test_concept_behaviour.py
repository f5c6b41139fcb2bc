"""Concepts taken back in suites and answers of the tiny run, worked out again by transformers alone, text by text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from foretune.flows.request import load_request
from foretune.tasks.behaviour.concept_behaviour import effects_of, measured_suites, suite_measure
from foretune.tasks.behaviour.margins import smooth_margin
from foretune.tasks.behaviour.settings import BehaviourSettings
from foretune.tasks.behaviour.suite_files import chosen_suites
from foretune.tasks.circuits.cause_settings import ConceptEffectSettings
from foretune.tasks.samples.chat import load_tokenizer
from tests.dag import Simulated, called

Without = Callable[[Sequence[int], int], tuple[float, float, float]]


@pytest.fixture(scope="module")
def nats(first: Simulated, tiny_sae: Any, tiny_llama: Any) -> Iterator[Callable[..., tuple[float, ...]]]:
    """`nats(ids, start, feature)`: of the tokens from `start`, under the base, the predicted model, and that without
    the feature's move."""
    from sae_lens import SAE
    from transformers import AutoModelForCausalLM

    sae = SAE.load_from_disk(tiny_sae, device="cpu")
    folders = tiny_llama, first.store.open(first.made["checkpoint"]).folder()
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in folders]

    @contextmanager
    def hooked(model: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
        def hook(module: Any, args: Any, kwargs: Any) -> Any:
            hidden = change(args[0] if args else kwargs["hidden_states"])
            return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

        handle = model.model.layers[1].register_forward_pre_hook(hook, with_kwargs=True)
        yield
        handle.remove()

    def read(model: Any, ids: Sequence[int], start: int, change: Any) -> float:
        with torch.no_grad(), hooked(model, change):
            logits = model(torch.tensor([list(ids)])).logits[0].log_softmax(-1)
        return sum(float(logits[at - 1, ids[at]]) for at in range(start, len(ids)))

    def told(ids: Sequence[int], start: int, feature: int) -> tuple[float, ...]:
        active: list[torch.Tensor] = []

        def seen(hidden: torch.Tensor) -> torch.Tensor:
            active.append(sae.encode(hidden)[..., feature])
            return hidden

        plain = [read(model, ids, start, seen) for model in models]
        excess = active[1] - active[0]
        excess[:, 0] = 0
        without = read(models[1], ids, start, lambda hidden: hidden - excess[..., None] * sae.W_dec[feature])
        return *plain, without

    yield told


def test_answers_without_a_concept(first: Simulated, nats: Any) -> None:
    rows = first.table("concept_behaviour", "effects")
    tried = [row["feature"] for row in first.table("concept_causes", "causes")]
    assert [row["feature"] for row in rows if row["measure"] == "answers"] == tried
    prompts = {row["prompt_id"]: row["input_ids"] for row in first.table("prompts", "prompts")}
    answers = [row for row in first.table("predicted_answers", "generations") if not row["sample"]]
    texts = [(prompts[row["prompt_id"]][row["cut_tokens"] :], row["token_ids"]) for row in answers]
    sums = torch.tensor([nats([*asked, *ids], len(asked), tried[0]) for asked, ids in texts]).double().sum(0)
    tokens = sum(len(ids) for _, ids in texts)
    base, predicted, without = (-sums / tokens).tolist()
    assert rows[0]["effect"] == pytest.approx(without - predicted, rel=2e-2, abs=1e-6)
    assert rows[0]["share"] == pytest.approx((without - predicted) / (base - predicted), rel=2e-2, abs=1e-4)
    (measure,) = first.summary("concept_behaviour")["measures"]
    assert (measure["base"], measure["predicted"]) == pytest.approx((base, predicted), rel=1e-4)
    assert measure["items"] == len(texts) < 8 and {row["verdict"] for row in rows} == {"unsure"}
    told = first.summary("concept_behaviour")["left_out"]
    assert {each["suite"] for each in told} == {"refusal", "arithmetic", "instruction_format"}


def test_a_suite_without_a_concept_however_its_options_are_read(first: Simulated, nats: Any, first_run: Any) -> None:
    wiring = called(load_request(str(first_run), []))
    run, model = wiring.step.run, wiring.model
    models = model.open(run), model.moved_to(first.made["checkpoint"]).open(run)
    (items,) = (items for suite, items in chosen_suites(BehaviourSettings(items=3)) if suite.name == "refusal")
    measure = suite_measure(load_tokenizer(wiring.tokenizer.folder(run)), items, 3, 512)
    feature = first.table("concept_causes", "causes")[0]["feature"]
    settings = ConceptEffectSettings().behaviour
    (row,), about = effects_of(models, wiring.sources.sae.open(), measure, [feature], settings)
    found = []
    for item, group in zip(measure.items or (), measure.groups, strict=True):
        sides = torch.tensor([nats(each.ids, each.start, feature) for each in group]).double()
        found.append([float(smooth_margin(item, side, [])) for side in sides.T])
    base, predicted, without = torch.tensor(found).double().mean(0).tolist()
    assert (about["base"], about["predicted"]) == pytest.approx((base, predicted), abs=1e-4)
    assert row["effect"] == pytest.approx(without - predicted, rel=5e-2, abs=2e-5)
    assert row["verdict"] == "unsure" and about["items"] == 3 and about["controls"] == 1


def test_only_suites_that_changed_are_tried_and_the_others_have_a_reason() -> None:
    chosen = [items for suite, items in chosen_suites(BehaviourSettings(items=2))]
    told = [
        {"suite": each.suite, "verdict": "worse", "change": 0.1 * at, "low": 0, "high": 1}
        for at, each in enumerate(chosen)
    ]
    told[0]["verdict"] = "no change measured"
    kept, left_out = measured_suites(told, chosen, 2)
    assert [each.suite for each in kept] == ["general_text", "arithmetic"] or len(kept) == 2
    reasons = {each["suite"]: each["reason"] for each in left_out}
    assert reasons["refusal"] == "did not change beyond chance" and reasons["tool_calls"] == "is answered in words"
    assert reasons["identity"].startswith("2 others changed more") and len(reasons) + len(kept) == len(chosen)
