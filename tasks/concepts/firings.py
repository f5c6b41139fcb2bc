"""On which tokens of some training and held-out rows every feature fires: what names and families are made from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foretune.storage.runs import Run
from foretune.tasks.engine.keys import NUMERICS
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.concepts import FiringSettings
from foretune.tasks.inputs.handles import ModelHandle, SaeHandle, device_lock
from foretune.tasks.loading.hooks import run_to_hook
from foretune.tasks.samples.minibatches import minibatches, token_masks
from foretune.tasks.samples.rows import SubsetRows

if TYPE_CHECKING:
    import pyarrow as pa

LONGEST = 256
"""Tokens read of a row, from its start: a few long rows would say no more of a feature and fill the disk."""


@content_task(version=1, libraries=(*NUMERICS, "sae-lens"))
def firings(
    draft: Any,
    run: Run,
    model: ModelHandle,
    sae: SaeHandle,
    rows: SubsetRows,
    heldout: SubsetRows,
    settings: FiringSettings,
) -> None:
    """tokens.parquet: the tokens of all rows, in order; firings.parquet: token (its line there), feature, activation.

    The first token of a row is left out, as everywhere (see `baseline`). `settings.rows` is what cut `rows`.
    """
    import numpy as np
    import pyarrow as pa

    loaded, autoencoder = model.open(run), sae.open()
    parts, tokens, text = [], [], 0
    for role, table in (("train", rows.read(run)), ("heldout", heldout.read(run))):
        cut = first_tokens(table)
        with device_lock(loaded):
            found = fired_tokens(loaded, autoencoder, cut, settings.batch_tokens)
        for ids, kept, (position, feature, activation) in zip(
            cut["input_ids"].to_pylist(), cut["loss_mask"].to_pylist(), found, strict=True
        ):
            start = sum(len(each["id"]) for each in tokens)
            parts.append((position + start, feature, activation))
            columns = {"text": text, "position": list(range(len(ids))), "id": ids, "label": kept, "role": role}
            tokens.append(columns)
            text += 1
    joined = [np.concatenate(column) for column in zip(*parts, strict=True)]
    named = zip(("token", "feature", "activation"), joined, strict=True)
    draft.write_table("firings.parquet", pa.table(dict(named)))
    draft.write_table("tokens.parquet", token_lines(tokens))


def first_tokens(table: pa.Table) -> pa.Table:
    """The rows' first tokens and labels; of pairs the chosen answer's."""
    import pyarrow as pa
    import pyarrow.compute as pc

    cut = {name: pc.list_slice(table[name], 0, LONGEST) for name in ("input_ids", "loss_mask")}  # pyright: ignore[reportAttributeAccessIssue]
    return pa.table({**cut, "rejected_ids": pa.nulls(len(table))})


def fired_tokens(loaded: Any, autoencoder: Any, table: pa.Table, batch_tokens: int) -> list[tuple[Any, Any, Any]]:
    """Per row its positions, features and activations, one of each for every feature that fires on a token."""
    import numpy as np
    import torch

    none = (np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))
    found: list[tuple[Any, Any, Any]] = [none] * len(table)
    for minibatch in minibatches(table, batch_tokens, loaded.device, trained_only=False):
        seen, _ = token_masks(minibatch.batch)
        with torch.no_grad():
            resid = run_to_hook(loaded, minibatch.batch, autoencoder.hook_name)
            for at, row in enumerate(minibatch.rows):
                positions = seen[at].nonzero()[:, 0]
                acts = autoencoder.encode(resid[at][positions])
                token, feature = acts.nonzero(as_tuple=True)
                values = (positions[token], feature.int(), acts[token, feature].float())
                found[row] = tuple(each.cpu().numpy() for each in values)  # type: ignore[assignment]
    return found


def token_lines(texts: list[dict[str, Any]]) -> pa.Table:
    """A line per token, row after row."""
    import pyarrow as pa

    lines = [len(text["id"]) for text in texts]
    spread = {
        name: [value for text, count in zip(texts, lines, strict=True) for value in [text[name]] * count]
        for name in ("text", "role")
    }
    joined = {name: [value for text in texts for value in text[name]] for name in ("position", "id", "label")}
    return pa.table({**spread, **joined})
