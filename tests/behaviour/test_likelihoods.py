"""Log-likelihoods and short answers against a plain forward, transformers' own generation and lm-evaluation-harness."""

from __future__ import annotations

import pytest
import torch

from foretune.tasks.behaviour.contexts import Context, Continuation, contexts, continuations
from foretune.tasks.behaviour.items import ITEM
from foretune.tasks.behaviour.likelihoods import keeps_a_cache, like_lengths, log_likelihoods, padded, shared_prefix
from foretune.tasks.behaviour.scoring import score_items
from foretune.tasks.behaviour.settings import ScoringSettings
from foretune.tasks.behaviour.short_answers import short_answers
from foretune.tasks.loading import ModelSettings, load_model
from foretune.tasks.numerics.work import counted_work
from foretune.tasks.samples.chat import load_tokenizer

FAMILIES = ("llama", "gpt2", "qwen2", "gemma2", "gpt_neox")
ASKED = ("Where is the red lamp?", "Why?", "Who checks the north gate at night, and how often?")
OPTIONS = (("By the river.", "I can't say"), ("No.", "Yes.", "Maybe so"), ("The night shift checks it.", "Nobody does"))


def opened(folder, eager: bool = True):
    settings = ModelSettings(name_or_path=str(folder), attn_implementation="eager" if eager else "sdpa")
    return load_model(folder, settings)


def asked_of(folder):
    tokenizer = load_tokenizer(folder)
    asked = contexts(tokenizer, [[{"role": "user", "content": text}] for text in ASKED])
    return [continuations(tokenizer, context, options) for context, options in zip(asked, OPTIONS, strict=True)]


def by_hand(model, ids: list[int], start: int) -> float:
    """One row, no padding, no cache, in double precision of the logits."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(logits[at - 1, ids[at]]) for at in range(start, len(ids)))


@pytest.mark.parametrize("batch_tokens", [1, 300, 10_000])
@pytest.mark.parametrize("family", FAMILIES)
def test_options_are_as_likely_as_in_a_forward_of_their_own(folder_of, family, batch_tokens):
    from transformers import AutoModelForCausalLM

    folder = folder_of(family)
    loaded, groups = opened(folder), asked_of(folder)
    assert keeps_a_cache(loaded)
    assert all(shared_prefix(group) > 20 for group in groups)
    reference = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    wanted = [[by_hand(reference, each.ids, each.start) for each in group] for group in groups]
    found = log_likelihoods(loaded, groups, batch_tokens)
    for got, want in zip(found, wanted, strict=True):
        assert got == pytest.approx(want, abs=2e-4)


def test_what_prompts_and_options_share_is_read_once(tiny_llama):
    loaded = opened(tiny_llama)
    prompts = [[*range(40, 60), *range(start, start + 5)] for start in (70, 80)]
    groups = [[Continuation([*ids, *own], 25) for own in ([1], [2], [3, 4])] for ids in prompts]
    with counted_work() as work:
        found = log_likelihoods(loaded, groups, 10_000)
    assert work.forward_tokens == 20 + 2 * 4 + 2 * 2 * 2  # beginning, own parts, a row of [1] and [2] and one of [3, 4]
    for got, group in zip(found, groups, strict=True):
        assert got == pytest.approx([by_hand(loaded.model, each.ids, each.start) for each in group], abs=2e-4)


def test_rows_are_padded_to_each_other_where_a_forward_costs_more():
    assert like_lengths([10, 12, 9]) == [[1, 0, 2]]
    assert like_lengths([10, 100, 9, 90]) == [[1, 3], [0, 2]]


def test_an_option_that_merges_with_its_context_is_scored_by_what_the_context_lacks(tiny_llama):
    tokenizer = load_tokenizer(tiny_llama)
    (first, second) = continuations(tokenizer, Context("Say it: ", chat=False), ["yes", "no"])
    assert tokenizer.backend.decode(first.ids[first.start :]) == " yes"  # the white space is the option's
    assert tokenizer.backend.decode(second.ids[: second.start]) == "Say it:"


@pytest.mark.parametrize("family", FAMILIES)
def test_short_answers_are_those_of_transformers(folder_of, family):
    from transformers import AutoModelForCausalLM

    folder = folder_of(family)
    prompts = [group[0].ids[: group[0].start] for group in asked_of(folder)]
    reference = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    ids, mask = padded(prompts, "left", torch.device("cpu"))
    made = reference.generate(
        ids, attention_mask=mask, max_new_tokens=12, do_sample=False, eos_token_id=258, pad_token_id=256
    )
    wanted = [row[: row.index(258)] if 258 in row else row for row in made[:, ids.shape[1] :].tolist()]
    assert short_answers(opened(folder), prompts, 12, [258], 10_000) == wanted
    assert short_answers(opened(folder), prompts, 12, [258], 1) == wanted  # one at a time


def test_an_item_longer_than_the_models_positions_is_left_out(folder_of):
    folder = folder_of("gpt2")
    long, short = ({"scorer": "loss", "text": text} for text in ("word " * 200, "A short text."))
    items = [ITEM.validate_python(item) for item in (long, short)]
    settings = ScoringSettings(answer_tokens=4, batch_tokens=512)
    scored = score_items(opened(folder), load_tokenizer(folder), items, settings, 256)
    assert scored[0] is None
    assert scored[1] is not None and scored[1].score > 0


def test_a_loss_is_that_of_transformers_per_token(tiny_llama):
    from transformers import AutoModelForCausalLM

    text = "The river carries sand down to the sea."
    reference = AutoModelForCausalLM.from_pretrained(tiny_llama, attn_implementation="eager").eval()
    ids = torch.tensor([load_tokenizer(tiny_llama).encode_texts([text])[0]])
    with torch.no_grad():
        wanted = float(reference(input_ids=ids, labels=ids).loss)
    settings = ScoringSettings(answer_tokens=4, batch_tokens=512)
    item = ITEM.validate_python({"scorer": "loss", "text": text})
    (scored,) = score_items(opened(tiny_llama), load_tokenizer(tiny_llama), [item], settings, None)
    assert scored is not None and scored.score == pytest.approx(wanted, rel=1e-5)


@pytest.mark.optional
def test_options_are_as_likely_as_in_lm_evaluation_harness(tiny_llama):
    """On the same strings, and with its accuracies; `pip install lm_eval` has it run."""
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    from lm_eval.api.instance import Instance

    tokenizer, loaded = load_tokenizer(tiny_llama), opened(tiny_llama)
    asked = contexts(tokenizer, [[{"role": "user", "content": text}] for text in ASKED])
    pairs = [(c.text, option) for c, options in zip(asked, OPTIONS, strict=True) for option in options]
    plain = [("The lamp is ", "red"), ("The lamp is", " red and old"), ("Where? ", "There.")]
    model = huggingface.HFLM(pretrained=str(tiny_llama), device="cpu", dtype="float32", batch_size=2)
    requests = [Instance("loglikelihood", {}, pair, n) for n, pair in enumerate([*pairs, *plain])]
    wanted = [nats for nats, _ in model.loglikelihood(requests)]
    # It counts white space at a context's end to each option; a template's line break is the context's here, which
    # leaves the differences between options.
    counted = [continuations(tokenizer, Context(text, chat=False), [option]) for text, option in [*pairs, *plain]]
    found = [nats for group in log_likelihoods(loaded, counted, 1000) for nats in group]
    assert found == pytest.approx(wanted, abs=2e-4)
    groups = [continuations(tokenizer, c, o) for c, o in zip(asked, OPTIONS, strict=True)]
    for group in log_likelihoods(loaded, groups, 1000):
        theirs = [wanted.pop(0) for _ in group]
        assert [nats - group[0] for nats in group] == pytest.approx([nats - theirs[0] for nats in theirs], abs=2e-4)


def test_a_suite_is_rendered_once_whatever_models_are_asked(tiny_llama, monkeypatch):
    turns = [[{"role": "user", "content": "What is asked here alone?"}]]
    first = contexts(load_tokenizer(tiny_llama), turns)
    monkeypatch.setattr("foretune.tasks.behaviour.contexts.renderer", None)  # another child would fail
    assert contexts(load_tokenizer(tiny_llama), turns) == first
    with pytest.raises(TypeError):
        contexts(load_tokenizer(tiny_llama), [[{"role": "user", "content": "And what here?"}]])
