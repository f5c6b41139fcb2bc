"""The first directions of each module's change, read as tokens where they lie in the residual stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from foretune.tasks.loading.logit_lens import shown_tokens, unembedded

if TYPE_CHECKING:
    from torch import Tensor

    from foretune.tasks.loading import LoadedModel
    from foretune.tasks.numerics.singular import SingularPart

WRITERS = ("o_proj", "out_proj", "c_proj", "down_proj", "dense", "dense_4h_to_h", "fc2", "fc_out", "wo", "w2")
"""Last names of the modules whose output is added to the residual stream; all others that are as wide read it."""
RANKS = 2
"""Directions of a module that are read."""
TOKENS = 6
"""Shown per end of a direction."""
CHUNK = 64
"""Directions unembedded at once: 64 x 128k logits are 33 MB."""


def direction_rows(
    loaded: LoadedModel, parts: Mapping[str, SingularPart], modules: int
) -> tuple[list[dict[str, Any]], int]:
    """The first directions of the `modules` of largest change, and how many modules could be read.

    Of a module that writes into the residual stream, u through the final norm and the unembedding: tokens made
    likelier and less likely where its input is along v. Of one that reads it, v against the embeddings: tokens that
    excite it most, and most against. Both are of either sign (u v' = -u -v'): the sign is such that v's largest entry
    is positive.
    """
    head = loaded.model.get_output_embeddings()
    if head is None:
        return [], 0
    width = head.weight.shape[1]
    readable = [name for name, part in parts.items() if _vectors(loaded, name, part, width) is not None]
    chosen = sorted(readable, key=lambda name: -parts[name].frobenius)[:modules]
    named = [(name, rank) for name in chosen for rank in range(min(RANKS, len(parts[name].values)))]
    named = [(name, rank) for name, rank in named if float(parts[name].values[rank]) > 1e-6 * parts[name].frobenius]
    rows: list[dict[str, Any]] = []
    for writes in (True, False):
        wanted = [(name, rank) for name, rank in named if _writes(name) == writes]
        for start in range(0, len(wanted), CHUNK):
            rows += _read(loaded, parts, wanted[start : start + CHUNK], writes)
    order = {name: n for n, name in enumerate(chosen)}
    return sorted(rows, key=lambda row: (order[row["module"]], row["rank"])), len(readable)


def _writes(name: str) -> bool:
    return name.removesuffix(".weight").rsplit(".", 1)[-1] in WRITERS


def _vectors(loaded: LoadedModel, name: str, part: SingularPart, width: int) -> Tensor | None:
    """[width, k]: the directions in the residual stream; None of what is no linear module, or not as wide."""
    from torch import nn

    if not isinstance(loaded.model.get_submodule(name.rpartition(".")[0]), nn.Linear):
        return None
    vectors = part.outputs if _writes(name) else part.inputs
    return vectors if vectors.shape[0] == width else None


def _read(
    loaded: LoadedModel, parts: Mapping[str, SingularPart], wanted: list[tuple[str, int]], writes: bool
) -> list[dict[str, Any]]:
    import torch
    from torch.nn.functional import normalize

    found, columns = [], []
    for name, rank in wanted:
        v = parts[name].inputs[:, rank]
        sign = 1.0 if v[v.abs().argmax()] >= 0 else -1.0
        columns.append(sign * (parts[name].outputs[:, rank] if writes else v))
    if not wanted:
        return []
    with torch.no_grad():
        directions = torch.stack(columns)
        if writes:
            scores = unembedded(loaded, directions)
        else:
            # The layer reads a normed stream: a token's embedding counts by its direction.
            embedded = _embeddings(loaded)
            scores = directions.to(embedded) @ normalize(embedded, dim=-1).T
    most = min(4 * TOKENS, scores.shape[-1])  # some are no text, or differ in case alone
    ends = {"promoted": scores.topk(most).indices.tolist(), "suppressed": (-scores).topk(most).indices.tolist()}
    for n, (name, rank) in enumerate(wanted):
        value = float(parts[name].values[rank])
        found.append(
            {
                "module": name,
                "rank": rank + 1,
                "side": "writes" if writes else "reads",
                "singular_value": value,
                "share": (value / parts[name].frobenius) ** 2,
                **{end: shown_tokens(loaded, ids[n], TOKENS) for end, ids in ends.items()},
            }
        )
    return found


def _embeddings(loaded: LoadedModel) -> Tensor:
    """[vocab, width], wherever the device map put them."""
    weight = loaded.model.get_input_embeddings().weight
    return loaded.values(next(name for name, parameter in loaded.model.named_parameters() if parameter is weight))
