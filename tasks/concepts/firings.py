"""On which tokens of some training and held-out rows every feature fires: what names and families are made from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foretune.storage.runs import Run
from foretune.tasks.concepts.fired_tokens import fired_tokens, first_tokens
from foretune.tasks.engine.keys import NUMERICS
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.concepts import FiringSettings
from foretune.tasks.inputs.handles import ModelHandle, SaeHandle, SaeHandles, device_lock, opened_saes
from foretune.tasks.samples.rows import SubsetRows

if TYPE_CHECKING:
    import pyarrow as pa


@content_task(version=1, libraries=(*NUMERICS, "sae-lens"))
def firings(
    draft: Any,
    run: Run,
    model: ModelHandle,
    sae: SaeHandle | SaeHandles,
    rows: SubsetRows,
    heldout: SubsetRows,
    settings: FiringSettings,
) -> None:
    """tokens.parquet: the tokens of all rows, in order; firings.parquet: token (its line there), feature, activation.

    The first token of a row is left out, as everywhere (see `baseline`). `settings.rows` is what cut `rows`. Of several
    SAEs each has its firings in the folder of its place; the tokens are the same.
    """
    import numpy as np
    import pyarrow as pa

    loaded, autoencoders = model.open(run), opened_saes(sae)
    parts: list[list[Any]] = [[] for _ in autoencoders]
    tokens, text, start = [], 0, 0
    for role, table in (("train", rows.read(run)), ("heldout", heldout.read(run))):
        cut = first_tokens(table)
        with device_lock(loaded):
            found = fired_tokens(loaded, autoencoders, cut, settings.batch_tokens)
        texts = zip(cut["input_ids"].to_pylist(), cut["loss_mask"].to_pylist(), zip(*found, strict=True), strict=True)
        for ids, kept, fired in texts:
            for own, (position, feature, activation) in zip(parts, fired, strict=True):
                own.append((position + start, feature, activation))
            columns = {"text": text, "position": list(range(len(ids))), "id": ids, "label": kept, "role": role}
            tokens.append(columns)
            text, start = text + 1, start + len(ids)
    for folder, own in zip(sae.folders, parts, strict=True):
        joined = [np.concatenate(column) for column in zip(*own, strict=True)]
        named = zip(("token", "feature", "activation"), joined, strict=True)
        draft.write_table(f"{folder}firings.parquet", pa.table(dict(named)))
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
