"""On which tokens of some training and held-out rows every feature fires: what names and families are made from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foretune.storage.runs import Run
from foretune.tasks.concepts.fired_tokens import fired_tokens, first_tokens
from foretune.tasks.engine.keys import NUMERICS
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.concepts import FiringSettings
from foretune.tasks.inputs.handles import ModelHandle, SaeHandle, device_lock
from foretune.tasks.samples.rows import SubsetRows

if TYPE_CHECKING:
    import pyarrow as pa


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
