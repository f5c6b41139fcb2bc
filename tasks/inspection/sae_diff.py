"""The same frozen SAE on the base model and on the predicted checkpoint: what each concept really does there."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.keys import NUMERICS
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.handles import ModelHandle, SaeHandle, SaeHandles, opened_saes
from foretune.tasks.inspection.activations import SampleActivations, sample_activations
from foretune.tasks.inspection.settings import DiffSettings
from foretune.tasks.samples.rows import SubsetRows

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from foretune.tasks.numerics.activations import Halves, PairedChange

NOISE = 3.0
"""Standard errors that a change must exceed to be called one: thousands of features are compared, and at two a
twentieth of those that stand still would be named."""


@content_task(version=3, libraries=(*NUMERICS, "sae-lens"))
def sae_diff(
    draft: Any,
    run: Run,
    model: ModelHandle,
    checkpoint: ArtifactRef,
    base: ArtifactRef,
    nulls: ArtifactRef | None,
    sae: SaeHandle | SaeHandles,
    rows: SubsetRows,
    settings: DiffSettings,
) -> None:
    """Per feature: mean activation under both models on held-out label tokens, the change with its standard error over
    rows, how far it stands out from null deltas, on which share of tokens it fires, and the change on either half. Of
    several SAEs, whose base and nulls are of the same ones, each in the folder of its place."""
    table = rows.read(run)
    read = sample_activations(model.moved_to(checkpoint).open(run), opened_saes(sae), table, settings)
    stored = run.store.open(base)
    for folder, after in zip(sae.folders, read, strict=True):
        before = stored.tensors(f"{folder}sums.safetensors")
        result = paired(before, after)
        z_null, noise = against_nulls(run, nulls, result.change, folder)
        beyond = beyond_noise(result.z, z_null)
        halved, stability = stable_halves(halves_of(before, after), beyond)
        draft.write_table(f"{folder}features.parquet", compared(result, before, after, beyond, z_null, halved))
        draft.write_json(
            f"{folder}summary.json",
            {
                "rows": len(table),
                "tokens": float(after.tokens.sum()),
                "explained_variance_base": stored.json(f"{folder}summary.json")["explained_variance"],
                "explained_variance_new": after.explained,
                "features_moved": int(beyond.sum()),
                **stability,
                **noise,
            },
        )


def paired(before: dict[str, Tensor], after: SampleActivations) -> PairedChange:
    """The change of every feature over the same rows under both models."""
    from foretune.tasks.numerics.activations import paired_change

    return paired_change(before["sums"], after.sums, after.tokens)


def halves_of(before: dict[str, Tensor], after: SampleActivations) -> Halves | None:
    """The change on either half of the rows; None where one has no token."""
    from foretune.tasks.numerics.activations import split_half

    return split_half(before["sums"], after.sums, after.tokens)


def compared(
    result: PairedChange,
    before: dict[str, Tensor],
    after: SampleActivations,
    beyond: Tensor,
    z_null: Tensor | None,
    halved: dict[str, Any],
) -> pa.Table:
    """A line per feature."""
    import pyarrow as pa

    total = float(after.tokens.sum())
    columns = {
        "feature": list(range(len(beyond))),
        "base": result.base.numpy(),
        "new": result.new.numpy(),
        "change": result.change.numpy(),
        "error": result.error.numpy(),
        "z": result.z.numpy(),
        "fires_base": (before["fired"] / total).numpy(),
        "fires_new": (after.fired / total).numpy(),
        "beyond_noise": beyond.numpy(),
    }
    if z_null is not None:
        columns["z_null"] = z_null.numpy()
    return pa.table(columns | halved)


def against_nulls(
    run: Run, nulls: ArtifactRef | None, change: Tensor, folder: str = ""
) -> tuple[Tensor | None, dict[str, Any]]:
    """z [d_sae] of each change against the null deltas', and what is told of these; (None, {}) without nulls."""
    if nulls is None:
        return None, {}
    from foretune.tasks.numerics.feature_nulls import pooled_nulls

    stored = run.store.open(nulls).tensors(f"{folder}nulls.safetensors")
    pooled = pooled_nulls(stored["change"], stored["error"])
    return pooled.z(change), {"null_deltas": pooled.draws, "null_freedom": _finite(pooled.freedom)}


def stable_halves(halves: Halves | None, beyond: Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
    """Columns of the two halves of the rows and what is told of them; nothing where a half has no token."""
    if halves is None:
        return {}, {}
    from foretune.tasks.numerics.agreement import spearman

    either = (halves.first != 0) | (halves.second != 0)
    columns = {"change_first_half": halves.first.numpy(), "change_second_half": halves.second.numpy()}
    told = {
        "half_spearman": _finite(spearman(halves.first[either], halves.second[either])),
        "moved_stable": int((halves.same_sign & beyond).sum()),
    }
    return columns | {"stable": halves.same_sign.numpy()}, told


def beyond_noise(z: Tensor, z_null: Tensor | None) -> Tensor:
    """[d] bool: more than `NOISE` standard errors over rows, and as far from what null deltas do."""
    return (z.abs() > NOISE) & (True if z_null is None else z_null.abs() > NOISE)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
