"""Concepts without an SAE: along which directions the residual stream moves, read as tokens by the logit lens.

Two kinds of lines. `first tokens` is the mean change on the first tokens of the rows, whatever these ask: narrow
fine-tuning shows there (Minder et al., "Narrow finetuning leaves clearly readable traces in activation differences",
2025). `direction` are the principal directions of the change on held-out label tokens.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.handles import ModelHandle, device_lock
from foretune.tasks.inspection.residual_settings import ResidualSettings
from foretune.tasks.loading import AdapterSettings
from foretune.tasks.loading.hooks import run_to_hook
from foretune.tasks.loading.logit_lens import shown_tokens, unembedded
from foretune.tasks.samples.minibatches import minibatches, token_masks
from foretune.tasks.samples.rows import SubsetRows

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from foretune.tasks.loading import LoadedModel
    from foretune.tasks.numerics.residual_change import MovedDirections

NOISE = 3.0
"""Standard errors over rows, and as many from what null deltas do: as for an SAE's features."""
MOST = 1000.0
"""Largest z over rows: where a template begins every row alike, what is left of their spread is rounding."""
TOKENS = 8
"""Shown per end of a direction."""


class Read(NamedTuple):
    """The residual stream on one set of tokens, in the order of the table's rows."""

    values: Tensor  # [t, d] float32, on the CPU
    rows: Tensor  # [t] ascending


@content_task(version=1)
def residual_change(
    draft: Any,
    run: Run,
    model: ModelHandle,
    checkpoint: ArtifactRef,
    prediction: ArtifactRef,
    rows: SubsetRows,
    adapter: AdapterSettings,
    settings: ResidualSettings,
) -> None:
    """directions.parquet: a line per direction; directions.safetensors: the unit vectors [lines, d], in their order.

    Costs a forward to the hook under both models and under each null delta, of the prediction's norm and rank.
    """
    base, table = model.open(run), rows.read(run).slice(0, settings.rows)
    hook = settings.hook_of(base.config.get_text_config().num_hidden_layers)
    with device_lock(base):
        before = read_residuals(base, table, hook, settings)
    moved = model.moved_to(checkpoint).open(run)
    with device_lock(moved):
        found = moved_parts(before, read_residuals(moved, table, hook, settings), settings)
    layers = run.store.open(prediction).arrow("layers.parquet", columns=["module", "norm"]).to_pylist()
    norms = {row["module"]: row["norm"] for row in layers if row["norm"]}
    base = model.open(run)
    nulls = null_parts(base, table, hook, norms, adapter, before, settings) if norms else []
    z_null = against(joined(found, "change"), [joined(part, "change") for part in nulls])
    directions = joined(found, "directions")
    size = [float(read.values.norm(dim=1).mean()) for read in before.values()]
    lines = lines_of(found, size, z_null, tokens_of(base, directions))
    draft.write_table("directions.parquet", line_table(lines))
    draft.write_tensors("directions.safetensors", {"directions": directions})
    draft.write_json(
        "summary.json",
        {
            "hook": hook,
            "rows": len(table),
            "tokens": len(before["direction"].rows) if "direction" in before else 0,
            "norm": size[-1] if size else 0.0,
            "beyond_noise": sum(line["beyond_noise"] for line in lines),
            "null_deltas": len(nulls),
        },
    )


def read_residuals(
    loaded: LoadedModel,
    table: pa.Table,
    hook: str,
    settings: ResidualSettings,
    weights: dict[str, Tensor] | None = None,
) -> dict[str, Read]:
    """The stream at the hook on each row's first tokens, but its very first, and on its label tokens; a set without
    a token is left out. `weights` {parameter name: tensor} stand in for the model's own."""
    import torch

    found: dict[str, list[tuple[int, Tensor]]] = {"first tokens": [], "direction": []}
    for minibatch in minibatches(table, settings.batch_tokens, loaded.device):
        seen, trained = token_masks(minibatch.batch)
        with torch.no_grad():
            resid = run_to_hook(loaded, minibatch.batch, hook, weights)
            for at, row in enumerate(minibatch.rows):
                labels = spaced(trained[at].nonzero()[:, 0], settings.row_tokens)
                chosen = {"first tokens": seen[at].nonzero()[:, 0][: settings.first_tokens], "direction": labels}
                for name, places in chosen.items():
                    found[name].append((row, resid[at][places].float().cpu()))
    read = {}
    for name, parts in found.items():
        parts.sort(key=lambda part: part[0])
        if sum(len(values) for _, values in parts):
            numbers = torch.cat([torch.full((len(values),), row) for row, values in parts])
            read[name] = Read(torch.cat([values for _, values in parts]), numbers)
    return read


def spaced(places: Tensor, most: int) -> Tensor:
    """At most so many of the places, evenly spaced, the ends among them."""
    import torch

    if len(places) <= most:
        return places
    return places[torch.linspace(0, len(places) - 1, most, device=places.device).round().long()]


def moved_parts(
    before: dict[str, Read], after: dict[str, Read], settings: ResidualSettings
) -> dict[str, MovedDirections]:
    """The mean change on the first tokens, and the principal directions on label tokens."""
    from foretune.tasks.numerics.residual_change import mean_direction, moved_directions, principal_directions

    fits = {"first tokens": mean_direction, "direction": principal_directions(settings.directions)}
    wanted = [name for name in fits if name in before and (name != "direction" or settings.directions)]
    return {
        name: moved_directions(after[name].values - before[name].values, before[name].rows, fits[name])
        for name in wanted
    }


def null_parts(
    loaded: LoadedModel,
    table: pa.Table,
    hook: str,
    norms: dict[str, float],
    adapter: AdapterSettings,
    before: dict[str, Read],
    settings: ResidualSettings,
) -> list[dict[str, MovedDirections]]:
    """The same of random deltas, each along directions of its own: what is the largest of a change is held against
    the largest of others, not against what these do along a direction that was not chosen for them."""
    from foretune.tasks.numerics.nulls import null_delta

    rank = adapter.r if adapter.method == "lora" else None
    weights, found = {name: loaded.weight(name) for name in norms}, []
    with device_lock(loaded):
        for draw in range(settings.draws):
            delta = null_delta(weights, norms, rank, draw, settings.seed)
            moved = {name: weights[name] + change.to(weights[name].dtype) for name, change in delta.items()}
            found.append(moved_parts(before, read_residuals(loaded, table, hook, settings, moved), settings))
    return found


def against(changes: Tensor, nulls: list[Tensor]) -> list[float | None]:
    """z of every line's change among the same line's under the nulls; None without any, and where these stand still."""
    from foretune.tasks.numerics.nulls import against_nulls

    found = (against_nulls(float(change), [float(null[n]) for null in nulls]) for n, change in enumerate(changes))
    return [beside and beside.z for beside in found]


def joined(parts: dict[str, MovedDirections], name: str) -> Tensor:
    """One figure of all lines, in their order."""
    import torch

    held = [getattr(part, name) for part in parts.values()]
    return torch.cat(held) if held else torch.zeros(0, 1)


def tokens_of(loaded: LoadedModel, directions: Tensor) -> list[dict[str, list[str]]]:
    """Per direction the tokens that it makes likelier and less likely; none where it is not as wide as the head."""
    import torch

    head = loaded.model.get_output_embeddings()
    if head is None or head.weight.shape[1] != directions.shape[1]:
        return [{"promoted": [], "suppressed": []} for _ in directions]
    with torch.no_grad():
        scores = unembedded(loaded, directions).float()
    most = min(4 * TOKENS, scores.shape[-1])  # some are no text, or differ in case alone
    ends = {"promoted": scores.topk(most).indices.tolist(), "suppressed": (-scores).topk(most).indices.tolist()}
    return [{end: shown_tokens(loaded, ids[n], TOKENS) for end, ids in ends.items()} for n in range(len(directions))]


def lines_of(
    parts: dict[str, MovedDirections], size: list[float], z_null: list[float | None], tokens: list[dict[str, list[str]]]
) -> list[dict[str, Any]]:
    """A line per direction: of the first tokens, then the principal ones from the largest on."""
    lines: list[dict[str, Any]] = []
    for (kind, part), norm in zip(parts.items(), size[: len(parts)], strict=True):
        for n in range(len(part.change)):
            at, change, z = len(lines), float(part.change[n]), max(-MOST, min(MOST, float(part.z[n])))
            beside = z_null[at]
            lines.append(
                {
                    "kind": kind,
                    "rank": n + 1,
                    "change": change,
                    "relative": change / norm if norm else None,
                    "error": float(part.error[n]),
                    "z": z,
                    "z_null": beside,
                    "beyond_noise": z > NOISE and (beside is None or beside > NOISE),
                    "stability": _known(part.stability, n),
                    "change_first_half": _known(part.first, n),
                    "change_second_half": _known(part.second, n),
                    "share": float(part.share[n]),
                    **tokens[at],
                }
            )
    return lines


def _known(values: Tensor | None, n: int) -> float | None:
    return None if values is None or not math.isfinite(float(values[n])) else float(values[n])


def line_table(lines: list[dict[str, Any]]) -> pa.Table:
    """With its columns where there is no line, too."""
    import pyarrow as pa

    numbers = (
        "change", "relative", "error", "z", "z_null", "stability", "change_first_half", "change_second_half", "share",
    )  # fmt: skip
    texts = [(end, pa.list_(pa.string())) for end in ("promoted", "suppressed")]
    schema = [("kind", pa.string()), ("rank", pa.int64()), *((name, pa.float64()) for name in numbers)]
    return pa.Table.from_pylist(lines, pa.schema([*schema, ("beyond_noise", pa.bool_()), *texts]))
