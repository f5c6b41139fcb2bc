"""What random deltas of the prediction's size do to every feature: noise that a concept's change is held against."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.keys import NUMERICS
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.concepts import FeatureNullSettings
from foretune.tasks.inputs.handles import ModelHandle, SaeHandle, SaeHandles, device_lock, opened_saes
from foretune.tasks.inspection.activations import sample_activations
from foretune.tasks.inspection.settings import DiffSettings
from foretune.tasks.loading import AdapterSettings
from foretune.tasks.samples.rows import SubsetRows

if TYPE_CHECKING:
    from torch import Tensor


@content_task(version=1, libraries=(*NUMERICS, "sae-lens"))
def sae_nulls(
    draft: Any,
    run: Run,
    model: ModelHandle,
    prediction: ArtifactRef,
    base: ArtifactRef,
    sae: SaeHandle | SaeHandles,
    rows: SubsetRows,
    adapter: AdapterSettings,
    compared: DiffSettings,
    settings: FeatureNullSettings,
) -> None:
    """nulls.safetensors: change [draws, d_sae] of the mean activation on label tokens, its standard error over rows.

    Of the rows compared the first `settings.rows`, which are a sample: rows are ordered by digests. Costs a forward
    to the SAE's layer per row and draw; the base weights' side is that of `sae_base`. Of several SAEs each in the
    folder of its place, under the same deltas; the forward is one, to the deepest hook.
    """
    import torch

    from foretune.tasks.numerics.activations import paired_change
    from foretune.tasks.numerics.nulls import null_delta

    layers = run.store.open(prediction).arrow("layers.parquet", columns=["module", "norm"]).to_pylist()
    norms = {row["module"]: row["norm"] for row in layers if row["norm"]}
    rank = adapter.r if adapter.method == "lora" else None
    loaded, autoencoders = model.open(run), opened_saes(sae)
    table, stored = rows.read(run).slice(0, settings.rows), run.store.open(base)
    before = [stored.tensors(f"{folder}sums.safetensors")["sums"][: len(table)] for folder in sae.folders]
    weights = {name: loaded.weight(name) for name in norms}
    changes: list[list[Tensor]] = [[] for _ in autoencoders]
    errors: list[list[Tensor]] = [[] for _ in autoencoders]
    tokens = torch.zeros(())
    with device_lock(loaded):
        for draw in range(settings.draws):
            delta = null_delta(weights, norms, rank, draw, settings.seed)
            moved = {name: weights[name] + change.to(weights[name].dtype) for name, change in delta.items()}
            read = sample_activations(loaded, autoencoders, table, compared, moved)
            for place, (sums, after) in enumerate(zip(before, read, strict=True)):
                found, tokens = paired_change(sums, after.sums, after.tokens), after.tokens
                changes[place].append(found.change.float())
                errors[place].append(found.error.float())
    told = {"deltas": settings.draws, "rank": rank, "rows": len(table), "tokens": float(tokens.sum())}
    for folder, change, error in zip(sae.folders, changes, errors, strict=True):
        tensors = {"change": torch.stack(change), "error": torch.stack(error)}
        draft.write_tensors(f"{folder}nulls.safetensors", tensors)
        draft.write_json(f"{folder}summary.json", told)
