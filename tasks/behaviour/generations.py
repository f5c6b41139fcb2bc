"""What one model answers: every prompt greedily, and as many draws as are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.behaviour.answer_settings import GenerationSettings
from foretune.tasks.behaviour.asked import Asked, cut_to
from foretune.tasks.behaviour.asked_model import AskedModel, answer_batches, asked_model
from foretune.tasks.behaviour.prompt_set import PromptSet
from foretune.tasks.behaviour.token_texts import token_texts
from foretune.tasks.engine.keys import NUMERICS
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.handles import ModelHandle, device_lock
from foretune.tasks.loading.continuation import continued, end_tokens, positions

if TYPE_CHECKING:
    import pyarrow as pa

    from foretune.tasks.samples.chat import ChatTokenizer

Answers = list[dict[str, Any]]


@content_task(version=1, libraries=(*NUMERICS, "tokenizers"))
def generations(
    draft: Any,
    run: Run,
    role: str,
    model: ModelHandle,
    weights: ArtifactRef | None,
    prompts: PromptSet,
    settings: GenerationSettings,
) -> None:
    """generations.parquet: of every prompt its greedy answer (sample 0) and its draws, token by token."""
    asked = asked_model(run, model, weights)
    with device_lock(asked.loaded):
        answers = answers_of(asked, prompts.read(run), prompts.chat(run), settings)
    draft.write_table("generations.parquet", generations_table(answers))


def answers_of(
    asked: AskedModel, prompts: Sequence[Asked], tokenizer: ChatTokenizer, settings: GenerationSettings
) -> Answers:
    """One record per prompt and sample, prompts in their order."""
    eos = tokenizer.backend.token_to_id(tokenizer.eos_token) if tokenizer.eos_token else None
    ends, window = end_tokens(asked.loaded, eos), positions(asked.loaded)
    fitted = [cut_to(each, window, settings.max_new_tokens) for each in prompts]
    jobs = [(number, sample) for number in range(len(prompts)) for sample in range(settings.samples + 1)]
    ids = [fitted[number][0].input_ids for number, _ in jobs]
    made: dict[int, list[int]] = {}
    for group in _groups(ids, jobs, settings):
        draw = None
        if jobs[group[0]][1]:
            from foretune.tasks.numerics.draws import Draw

            seeded = [_generator(settings.seed, prompts[jobs[at][0]].prompt_id, jobs[at][1]) for at in group]
            draw = Draw(seeded, settings.temperature)
        batch = [ids[at] for at in group]
        answers = continued(asked.loaded, batch, settings.max_new_tokens, ends, asked.weights, draw)
        made |= dict(zip(group, answers, strict=True))
    answered = [made[at] for at in range(len(jobs))]
    logprobs = answer_logprobs(asked, ids, answered, settings.batch_tokens)
    return [
        {
            "prompt_id": prompts[number].prompt_id,
            "prompt": tokenizer.backend.decode(list(ids[at]), skip_special_tokens=True),
            "cut_tokens": fitted[number][1],
            "sample": sample,
            "answer": tokenizer.backend.decode(answered[at], skip_special_tokens=True),
            "token_ids": answered[at],
            "tokens": token_texts(tokenizer.backend, answered[at]),
            "logprobs": logprobs[at],
            "stopped": "eos" if answered[at] and answered[at][-1] in ends else "length",
        }
        for at, (number, sample) in enumerate(jobs)
    ]


def _groups(ids: Sequence[Sequence[int]], jobs: Sequence[tuple[int, int]], settings: GenerationSettings) -> list[Any]:
    """Positions that are answered together: like lengths, greedy ones apart from draws."""
    from foretune.tasks.numerics.batches import buckets

    groups = []
    for drawn in (False, True):
        own = [at for at, (_, sample) in enumerate(jobs) if bool(sample) == drawn]
        lengths = [len(ids[at]) + settings.max_new_tokens for at in own]
        found = buckets(lengths, max([settings.batch_tokens, *lengths]))
        groups += [[own[position] for position in group] for group in found]
    return groups


def _generator(seed: int, prompt: str, sample: int) -> Any:
    """A generator of a prompt's own: which prompts stand beside it changes no draw."""
    import torch

    digest = hashlib.sha256(f"{seed}:{prompt}:{sample}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def answer_logprobs(
    asked: AskedModel, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], batch_tokens: int
) -> list[list[float]]:
    """Log-probability in nats of every token of every answer, after its prompt, by plain forward passes."""
    from foretune.tasks.numerics.losses import token_losses

    found: list[list[float]] = [[] for _ in answers]
    for rows, batch in answer_batches(prompts, answers, batch_tokens, asked.loaded.device):
        nats = token_losses(asked.label_logits(batch), batch.labels).cpu()
        for at, row in enumerate(rows):
            start = len(prompts[row]) - 1  # column j is the loss of token j + 1
            found[row] = (-nats[at, start : start + len(answers[row])]).tolist()
    return found


def generations_table(answers: Answers) -> pa.Table:
    """Answers with the columns of generations.parquet."""
    import pyarrow as pa

    schema = {
        "prompt_id": pa.string(),
        "prompt": pa.string(),
        "cut_tokens": pa.int32(),  # of the prompt's beginning, left out
        "sample": pa.int32(),  # 0 is the greedy answer
        "answer": pa.string(),
        "token_ids": pa.list_(pa.int32()),  # with the token that ended it
        "tokens": pa.list_(pa.string()),  # their texts; of the special ones none
        "logprobs": pa.list_(pa.float64()),  # nats
        "stopped": pa.string(),  # eos | length
    }
    return pa.Table.from_pylist(answers, schema=pa.schema(schema))
