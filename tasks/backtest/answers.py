"""Does the predicted model answer as a really trained one does? The same prompts, asked by the same pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from statistics import fmean
from typing import TYPE_CHECKING, Any

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.backtest.axes import spread
from foretune.tasks.behaviour.asked_model import asked_model
from foretune.tasks.behaviour.stored_answers import greedy
from foretune.tasks.behaviour.token_diff import token_diff
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.handles import ModelHandle, device_lock
from foretune.tasks.samples.minibatches import minibatches
from foretune.tasks.samples.rows import SubsetRows

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

METHODS = {
    "simulation": "the predicted model",
    "base": "the base model, untrained",
    "rerun": "a real run with another order of the rows",
}


@content_task(version=1)
def answer_agreement(
    draft: Any,
    run: Run,
    base: ArtifactRef,
    predicted: ArtifactRef,
    answered: list[ArtifactRef],
    prediction: ArtifactRef,
    real: list[ArtifactRef],
    seeds: list[int],
    model: ModelHandle,
    rows: SubsetRows,
    batch_tokens: int,
) -> None:
    """answers.json: how often the predicted, the base and another real model answer as each real run does, and find
    the same next token likeliest on held-out answers."""
    sides = [greedy(run, ref) for ref in (predicted, base)]
    truths = [greedy(run, ref) for ref in answered]
    table = rows.read(run)
    likeliest = [likeliest_tokens(run, model, ref, table, batch_tokens) for ref in (prediction, None, *real)]
    texts = compared_answers(sides[0], sides[1], truths)
    tokens = compared_tokens(likeliest[0], likeliest[1], likeliest[2:])
    draft.write_json(
        "answers.json",
        {
            "prompts": len(sides[0]),
            "heldout_tokens": len(likeliest[0]),
            "seeds": seeds,
            "methods": [
                {"method": name, "meaning": meaning, **texts[name], "same_next_token": tokens[name]}
                for name, meaning in METHODS.items()
            ],
        },
    )


def compared_answers(
    predicted: Mapping[str, Any], base: Mapping[str, Any], real: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Per method the share of prompts answered token for token as the real run does, and the share of equal tokens."""
    pairs = _pairs(predicted, base, real)
    found = {}
    for name, compared in pairs.items():
        diffs = [
            [token_diff(one[prompt]["token_ids"], truth[prompt]["token_ids"]) for prompt in truth]
            for one, truth in compared
        ]
        found[name] = {
            "same_answer": spread([fmean(diff.equal for diff in each) for each in diffs]),
            "equal_share": spread([fmean(diff.equal_share for diff in each) for each in diffs]),
        }
    return found


def compared_tokens(predicted: Tensor, base: Tensor, real: Sequence[Tensor]) -> dict[str, Any]:
    """Per method the share of label tokens [n] before which both models find the same token likeliest."""
    pairs = _pairs(predicted, base, real)
    return {
        name: spread([float((one == truth).double().mean()) for one, truth in compared])
        for name, compared in pairs.items()
    }


def _pairs(predicted: Any, base: Any, real: Sequence[Any]) -> dict[str, list[tuple[Any, Any]]]:
    """What is held against which real run."""
    return {
        "simulation": [(predicted, truth) for truth in real],
        "base": [(base, truth) for truth in real],
        "rerun": list(permutations(real, 2)),
    }


def likeliest_tokens(
    run: Run, model: ModelHandle, weights: ArtifactRef | None, table: pa.Table, batch_tokens: int
) -> Tensor:
    """[n] the likeliest token before each label of the rows, in the order of their micro-batches."""
    import torch

    asked = asked_model(run, model, weights)
    with device_lock(asked.loaded):
        batches = minibatches(table, batch_tokens, asked.loaded.device)
        return torch.cat([asked.label_logits(each.batch).argmax(-1).cpu() for each in batches])
