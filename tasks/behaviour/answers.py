"""The answers of the base and of the predicted model side by side, and how each model finds the other's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.behaviour.answer_settings import GenerationSettings
from foretune.tasks.behaviour.asked_model import AskedModel, answer_batches, asked_model
from foretune.tasks.behaviour.prompt_set import FILE
from foretune.tasks.behaviour.stored_answers import greedy
from foretune.tasks.behaviour.token_diff import TokenDiff, token_diff
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.handles import ModelHandle, device_lock

if TYPE_CHECKING:
    import pyarrow as pa

    from foretune.tasks.numerics.comparison import SampleSums, TokenComparison

FEW = 30
"""Fewer prompts are examples, not a measurement: a share of them has an error of a tenth and more."""


@content_task(version=1)
def answers(
    draft: Any,
    run: Run,
    model: ModelHandle,
    checkpoint: ArtifactRef,
    prompts: ArtifactRef,
    base: ArtifactRef,
    predicted: ArtifactRef,
    settings: GenerationSettings,
) -> None:
    """answers.parquet: per prompt both greedy answers, their difference token by token, and their log-probabilities
    under both models; summary.json."""
    from foretune.tasks.numerics.comparison import sample_sums

    asked = run.store.open(prompts).arrow(FILE).to_pylist()
    sides = [greedy(run, ref) for ref in (base, predicted)]
    models = asked_model(run, model, None), asked_model(run, model, checkpoint)
    ids = [row["input_ids"][sides[0][row["prompt_id"]]["cut_tokens"] :] for row in asked]
    answered = [[side[row["prompt_id"]]["token_ids"] for row in asked] for side in sides]
    with device_lock(models[0].loaded):
        tokens = [compared(models, ids, each, settings.batch_tokens) for each in answered]
    scores = [sample_sums(each, len(asked)) for each in tokens]
    diffs = [token_diff(*pair) for pair in zip(*answered, strict=True)]
    draft.write_table("answers.parquet", answers_table(_records(asked, sides, diffs, scores)))
    same_next = float(tokens[0].correct_new.double().mean())
    draft.write_json("summary.json", summary_of(sides, diffs, scores, same_next, settings))


def compared(
    models: tuple[AskedModel, AskedModel],
    prompts: Sequence[Sequence[int]],
    answered: Sequence[Sequence[int]],
    batch_tokens: int,
) -> TokenComparison:
    """Both models on the same answers, teacher-forced, in the answers' order."""
    from foretune.tasks.numerics.comparison import compare_logits, joined

    parts, order = [], []
    for rows, batch in answer_batches(prompts, answered, batch_tokens, models[0].loaded.device):
        base, new = (model.label_logits(batch) for model in models)
        parts.append(compare_logits(base, new, batch.labels))
        order.append(rows)
    return joined(parts, order)[0]


def _records(
    asked: Sequence[Mapping[str, Any]],
    sides: Sequence[Mapping[str, Any]],
    diffs: Sequence[TokenDiff],
    scores: Sequence[SampleSums],
) -> list[dict[str, Any]]:
    records = []
    of_base, of_new = scores
    for at, (row, diff) in enumerate(zip(asked, diffs, strict=True)):
        base, new = (side[row["prompt_id"]] for side in sides)
        record = {name: row[name] for name in ("prompt_id", "origin", "row", "prompt", "note", "reference")}
        record |= {
            "cut_tokens": base["cut_tokens"],
            "equal": diff.equal,
            "first_difference": diff.first_difference,
            "equal_share": diff.equal_share,
            "spans": _spans(diff, base["tokens"], new["tokens"]),
        }
        for name, side in (("base", base), ("predicted", new)):
            record |= {name: side["answer"], f"{name}_stopped": side["stopped"], f"{name}_tokens": len(side["tokens"])}
        record |= {
            "base_nats": float(of_base.loss_base[at]),
            "base_nats_predicted": float(of_base.loss_new[at]),
            "predicted_nats": float(of_new.loss_new[at]),
            "predicted_nats_base": float(of_new.loss_base[at]),
            "kl": float(of_base.kl[at]),
        }
        records.append(record)
    return records


def _spans(diff: TokenDiff, base: Sequence[str], new: Sequence[str]) -> list[dict[str, Any]]:
    """Kind and text of every span, in reading order. Equal tokens can have two texts: bytes of a character belong to
    the token that completes it."""
    return [
        {
            "kind": span.kind,
            "tokens": max(span.first[1] - span.first[0], span.second[1] - span.second[0]),
            "base": "".join(base[slice(*span.first)]),
            "predicted": "".join(new[slice(*span.second)]),
        }
        for span in diff.spans
    ]


def answers_table(records: list[dict[str, Any]]) -> pa.Table:
    """Columns of answers.parquet."""
    import pyarrow as pa

    text, number, nats = pa.string(), pa.int32(), pa.float64()
    span = pa.struct({"kind": text, "tokens": number, "base": text, "predicted": text})
    schema = {
        "prompt_id": text,
        "origin": text,  # file | probe | held-out
        "row": pa.int64(),  # in that file, from 0
        "prompt": text,
        "note": text,  # what was done to the prompt
        "reference": text,  # what the row answers
        "cut_tokens": number,  # of the prompt's beginning, left out
        "equal": pa.bool_(),
        "first_difference": number,  # position of the first token that differs
        "equal_share": nats,  # tokens in both, of those of the longer answer
        "spans": pa.list_(span),  # equal | removed | inserted
        "base": text,
        "base_stopped": text,
        "base_tokens": number,
        "predicted": text,
        "predicted_stopped": text,
        "predicted_tokens": number,
        "base_nats": nats,  # of the base's answer under the base, summed over its tokens
        "base_nats_predicted": nats,  # the same answer under the predicted model
        "predicted_nats": nats,
        "predicted_nats_base": nats,
        "kl": nats,  # KL(base || predicted) summed over the base's answer
    }
    return pa.Table.from_pylist(records, schema=pa.schema(schema))


def summary_of(
    sides: Sequence[Mapping[str, Any]],
    diffs: Sequence[TokenDiff],
    scores: Sequence[SampleSums],
    same_next: float,
    settings: GenerationSettings,
) -> dict[str, Any]:
    """Counts with their n, and means per token."""
    of_base, of_new = scores
    tokens, new_tokens = float(of_base.tokens.sum()), float(of_new.tokens.sum())
    count = len(diffs)
    return {
        "prompts": count,
        "changed": sum(not diff.equal for diff in diffs),
        "first_token_changed": sum(diff.first_difference == 0 for diff in diffs),
        "equal_share": sum(diff.equal_share for diff in diffs) / count,
        "answer_tokens": round(tokens),
        "same_next_token": same_next,
        "kl": float(of_base.kl.sum()) / tokens,
        "surprise_base": float(of_new.loss_base.sum()) / new_tokens,
        "surprise_predicted": float(of_new.loss_new.sum()) / new_tokens,
        "ended_base": sum(row["stopped"] == "eos" for row in sides[0].values()),
        "ended_predicted": sum(row["stopped"] == "eos" for row in sides[1].values()),
        "max_new_tokens": settings.max_new_tokens,
        "few": count < FEW,
    }
