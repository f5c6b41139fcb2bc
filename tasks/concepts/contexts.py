"""What a feature is judged by: where it fires under both models, the tokens that it favours, its neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.concepts.fired_tokens import fired_tokens, first_tokens
from foretune.tasks.engine.keys import NUMERICS
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.concepts import FiringSettings
from foretune.tasks.inputs.handles import ModelHandle, SaeHandle, device_lock
from foretune.tasks.loading.logit_lens import shown_tokens, unembedded
from foretune.tasks.loading.pieces import token_texts
from foretune.tasks.samples.rows import SubsetRows

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

PROMOTED, NEIGHBOURS = 8, 6
"""Tokens at either end of a feature's direction, and features nearest to it."""


@content_task(version=1, libraries=(*NUMERICS, "sae-lens"))
def feature_contexts(
    draft: Any,
    run: Run,
    model: ModelHandle,
    checkpoint: ArtifactRef,
    firings: ArtifactRef,
    sae: SaeHandle,
    rows: SubsetRows,
    heldout: SubsetRows,
    settings: FiringSettings,
) -> None:
    """texts.parquet: the rows that were read, as tokens; activations.parquet: token (counted through all texts),
    feature, its activation under the base and the predicted model; lens.parquet: of every feature that fires the tokens
    that it promotes and suppresses, and its neighbours among the others that fire; sae.json: what Neuronpedia calls the
    SAE, as far as its release or its folder says."""
    tables = [(role, subset.read(run)) for role, subset in (("train", rows), ("heldout", heldout))]
    before = run.store.open(firings).arrow("firings.parquet")
    autoencoder, predicted = sae.open(), model.moved_to(checkpoint).open(run)
    cut = [first_tokens(table) for _, table in tables]
    with device_lock(predicted):
        read = [fired_tokens(predicted, [autoencoder], table, settings.batch_tokens) for table in cut]
    found = [each for (texts,) in read for each in texts]
    fired = on_both_sides(before, found, [len(ids) for table in cut for ids in table["input_ids"].to_pylist()])
    draft.write_table("activations.parquet", fired)
    loaded = model.open(run)
    draft.write_table(
        "texts.parquet",
        [
            {"role": role, "sample_id": sample, "tokens": token_texts(loaded.tokenizer, ids)}
            for (role, table), short in zip(tables, cut, strict=True)
            for sample, ids in zip(table["sample_id"].to_pylist(), short["input_ids"].to_pylist(), strict=True)
        ],
    )
    draft.write_table("lens.parquet", read_directions(autoencoder, loaded, sorted({*fired["feature"].to_pylist()})))
    draft.write_json("sae.json", {"neuronpedia_id": autoencoder.config.neuronpedia_id})


def on_both_sides(before: pa.Table, after: list[tuple[Any, Any, Any]], lengths: list[int]) -> pa.Table:
    """The tokens on which a feature fires under either model, by feature and token; 0 where it does not under one.

    `before` is as `firings` stores it, `after` as `fired_tokens` gives it, of texts of these lengths.
    """
    import numpy as np
    import pyarrow as pa

    starts = np.cumsum([0, *lengths])
    columns = zip(*((at + start, feature, value) for start, (at, feature, value) in zip(starts, after)), strict=True)  # noqa: B905
    moved = [np.concatenate(column) for column in columns]
    sides = [[before[name].to_numpy() for name in ("token", "feature", "activation")], moved]
    keys = [feature.astype(np.int64) * starts[-1] + token for token, feature, _ in sides]
    every = np.union1d(*keys)
    feature, token = np.divmod(every, starts[-1])
    values = {name: spread(every, key, side[2]) for name, key, side in zip(("base", "new"), keys, sides, strict=True)}
    return pa.table({"feature": feature.astype(np.int32), "token": token.astype(np.int32), **values})


def spread(every: np.ndarray[Any, Any], keys: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> Any:
    """The values at their keys among `every`, which is sorted; else 0."""
    import numpy as np

    placed = np.zeros(len(every), dtype=np.float32)
    placed[np.searchsorted(every, keys)] = values
    return placed


def read_directions(autoencoder: Any, loaded: Any, features: list[int]) -> pa.Table:
    """Per feature the tokens at either end of its decoder row, through the logit lens, and its neighbours.

    No tokens where the SAE is not as wide as the residual stream, or the model has no unembedding.
    """
    import pyarrow as pa
    import torch

    from foretune.tasks.numerics.neighbours import nearest_directions

    head = loaded.model.get_output_embeddings()
    readable = head is not None and head.weight.shape[1] == autoencoder.d_in
    directions = autoencoder.W_dec[features].detach()
    near, read = nearest_directions(directions, NEIGHBOURS), []
    with torch.no_grad():
        for start in range(0, len(features), 256):  # 256 x 50k logits are 50 MB
            ends: list[Any] = [[[]] * 256, [[]] * 256]
            if readable:
                logits = unembedded(loaded, directions[start : start + 256])
                count = min(2 * PROMOTED, logits.shape[1])
                ends = [logits.topk(count, dim=-1, largest=largest).indices.tolist() for largest in (True, False)]
            for at, feature in enumerate(features[start : start + 256]):
                places, cosines = near.places[start + at].tolist(), near.cosines[start + at].tolist()
                read.append(
                    {
                        "feature": feature,
                        "promoted": shown_tokens(loaded, ends[0][at], PROMOTED),
                        "suppressed": shown_tokens(loaded, ends[1][at], PROMOTED),
                        "neighbours": [features[place] for place in places],
                        "cosines": cosines,
                    }
                )
    words, numbers = pa.list_(pa.string()), pa.list_(pa.int32())
    columns = {"feature": pa.int32(), "promoted": words, "suppressed": words, "neighbours": numbers}
    return pa.Table.from_pylist(read, pa.schema({**columns, "cosines": pa.list_(pa.float32())}))
