"""In which direction the weights move a suite: the gradient of its mean margin at the base weights."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field

from foretune.storage.errors import BadInput
from foretune.storage.runs import Run
from foretune.tasks.behaviour.items import Direction, SuiteItems
from foretune.tasks.behaviour.likelihoods import log_likelihoods, parts, read_together, sharing
from foretune.tasks.behaviour.margins import margin_weights, unit_of
from foretune.tasks.engine.keys import NUMERICS, without_result
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.factors import GRADIENTS, FactorSettings, recorded, value_gradients, write_gradients
from foretune.tasks.inputs.handles import ModelHandle, device_lock
from foretune.tasks.loading import AdapterTargets, label_caller, target_weights, token_limits
from foretune.tasks.samples.chat import load_tokenizer
from foretune.tasks.samples.dataset import TokenizerHandle

if TYPE_CHECKING:
    from torch import Tensor

    from foretune.tasks.behaviour.contexts import Continuation
    from foretune.tasks.loading import LoadedModel
    from foretune.tasks.numerics.objectives import Call

    Value = Callable[[dict[str, Tensor]], Tensor]


class MarginSettings(BaseModel):
    """What the gradient is of: `name` says it to people, `better` which way is good."""

    version: Literal[1] = 1
    name: str
    better: Direction
    batch_tokens: int = Field(json_schema_extra=without_result())


@content_task(version=1, libraries=(*NUMERICS, "tokenizers", "jinja2", "google-re2"))
def suite_gradient(
    draft: Any,
    run: Run,
    model: ModelHandle,
    tokenizer: TokenizerHandle,
    items: SuiteItems,
    targets: AdapterTargets,
    settings: MarginSettings,
    factors: FactorSettings | None = None,
) -> None:
    """Gradient of the mean margin over the items in the full weights; target.json: what it is, its value, its items.

    Every option's log-likelihood is weighed by the margin's derivative by it. Options that are read over what they
    share are in one graph, of a micro-batch; of others the likelihoods are taken without a gradient first.
    """
    from foretune.tasks.behaviour.scoring import fitting_options

    folder = tokenizer.folder(run)
    loaded, longest = model.open(run), token_limits(folder).positions
    asked = fitting_options(load_tokenizer(folder), items.items, longest)
    if not asked:
        raise BadInput(f"suite {items.suite}: no item fits into the model's {longest} positions; do not watch it")
    weights, margins = target_weights(loaded, targets), []
    with device_lock(loaded):
        values = weighed(loaded, list(weights), asked, margins, settings.batch_tokens)
        gradient = value_gradients(loaded, weights, values, factors)
    write_gradients(draft, GRADIENTS, gradient)
    draft.write_json(
        "target.json",
        {
            "kind": "suite",
            "name": settings.name,
            "suite": items.suite,
            "unit": unit_of(asked[0][0]),
            "better": None if settings.better == "either" else settings.better,
            "value": sum(margins) / len(margins),
            "items": len(asked),
            "left_out": len(items.items) - len(asked),
            "modules": list(gradient),
            **recorded(factors, loaded.dtype),
        },
    )


def weighed(
    loaded: LoadedModel,
    names: Sequence[str],
    asked: Sequence[tuple[Any, list[Continuation]]],
    margins: list[float],
    batch_tokens: int,
) -> Iterator[Value]:
    """Functions of the weights that sum to the mean margin as far as its gradient is concerned; `margins` gets those of
    the items as they are called."""
    groups = [group for _, group in asked]
    joint, apart = read_together(loaded, groups)
    for part in parts(joint, groups, batch_tokens):
        yield functools.partial(_shared, loaded, [asked[n] for n in part], margins, 1 / len(asked))
    likelihoods = log_likelihoods(loaded, [groups[n] for n in apart], batch_tokens)
    options, shares = [], []
    for n, nats in zip(apart, likelihoods, strict=True):
        margin, own = margin_weights(asked[n][0], nats, [each.tokens for each in groups[n]])
        margins.append(margin)
        options += groups[n]
        shares += [share / len(asked) for share in own]
    yield from _alone(label_caller(loaded, names), options, shares, batch_tokens, loaded.device)


def _shared(
    loaded: LoadedModel,
    asked: Sequence[tuple[Any, list[Continuation]]],
    margins: list[float],
    share: float,
    weights: dict[str, Tensor],
) -> Tensor:
    """Sum over the items of a part of their margins' share, by what the margin is at these weights."""
    import torch
    from torch.func import functional_call

    def model(**inputs: Any) -> Any:
        return functional_call(loaded.model, weights, (), inputs)

    nats, shares = sharing(loaded, [group for _, group in asked], model), []
    values = iter(nats.tolist())
    for item, group in asked:
        margin, own = margin_weights(item, [next(values) for _ in group], [each.tokens for each in group])
        margins.append(margin)
        shares += [each * share for each in own]
    return (nats * torch.tensor(shares, dtype=nats.dtype)).sum()


def _alone(
    call: Call, options: Sequence[Continuation], shares: Sequence[float], batch_tokens: int, device: Any
) -> Iterator[Value]:
    """Sums of log-likelihoods, each times its share, by micro-batch; an option without a share is not read."""
    import torch

    from foretune.tasks.numerics.batches import IGNORED, buckets, collate
    from foretune.tasks.numerics.losses import sequence_logprobs

    read = [n for n, share in enumerate(shares) if share]
    lengths = [len(options[n].ids) for n in read]
    for bucket in buckets(lengths, max([batch_tokens, *lengths])):
        chosen = [read[n] for n in bucket]
        pairs = [(each.ids, [IGNORED] * each.start + each.ids[each.start :]) for each in (options[n] for n in chosen)]
        batch = collate(pairs).to(device)
        weight = torch.tensor([shares[n] for n in chosen], device=device)

        def total(w: dict[str, Tensor], batch: Any = batch, weight: Tensor = weight) -> Tensor:
            return (sequence_logprobs(call(w, batch), batch.labels) * weight).sum()

        yield total
