"""On which tokens of some rows which features fire, and how strongly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foretune.tasks.loading.hooks import run_to_hooks
from foretune.tasks.samples.minibatches import minibatches, token_masks

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

LONGEST = 256
"""Tokens read of a row, from its start: a few long rows would say no more of a feature and fill the disk."""


def first_tokens(table: pa.Table) -> pa.Table:
    """The rows' first tokens and labels; of pairs the chosen answer's."""
    import pyarrow as pa
    import pyarrow.compute as pc

    cut = {name: pc.list_slice(table[name], 0, LONGEST) for name in ("input_ids", "loss_mask")}  # pyright: ignore[reportAttributeAccessIssue]
    return pa.table({**cut, "rejected_ids": pa.nulls(len(table))})


def fired_tokens(
    loaded: Any, autoencoders: Sequence[Any], table: pa.Table, batch_tokens: int
) -> list[list[tuple[Any, Any, Any]]]:
    """Of each SAE, per row its positions, features and activations, one of each for every feature that fires on a
    token; one forward serves all SAEs."""
    import numpy as np
    import torch

    none = (np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))
    found: list[list[tuple[Any, Any, Any]]] = [[none] * len(table) for _ in autoencoders]
    hooks = [autoencoder.hook_name for autoencoder in autoencoders]
    for minibatch in minibatches(table, batch_tokens, loaded.device, trained_only=False):
        seen, _ = token_masks(minibatch.batch)
        with torch.no_grad():
            read = run_to_hooks(loaded, minibatch.batch, hooks)
            for autoencoder, texts in zip(autoencoders, found, strict=True):
                resid = read[autoencoder.hook_name]
                for at, row in enumerate(minibatch.rows):
                    positions = seen[at].nonzero()[:, 0]
                    acts = autoencoder.encode(resid[at][positions])
                    token, feature = acts.nonzero(as_tuple=True)
                    values = (positions[token], feature.int(), acts[token, feature].float())
                    texts[row] = tuple(each.cpu().numpy() for each in values)  # type: ignore[assignment]
    return found
