"""Base model and predicted checkpoint side by side: weights, losses, divergences, confidence, preferences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.handles import ModelHandle, device_lock
from foretune.tasks.inspection.directions import direction_rows
from foretune.tasks.inspection.distributions import (
    compare_rows,
    probe_rows,
    row_losses,
    set_summary,
    token_table,
    worst_tokens,
)
from foretune.tasks.inspection.noise import against_null_rows
from foretune.tasks.inspection.preferred import pair_rows, pair_summary
from foretune.tasks.inspection.reliability import calibration_rows
from foretune.tasks.inspection.settings import ModelDiffSettings
from foretune.tasks.inspection.weights import stored_dtypes, weight_changes
from foretune.tasks.samples.dataset import read_some
from foretune.tasks.samples.rows import SubsetRows

if TYPE_CHECKING:
    from foretune.tasks.loading import LoadedModel


@content_task(version=3)
def model_diff(
    draft: Any,
    run: Run,
    model: ModelHandle,
    checkpoint: ArtifactRef,
    rows: SubsetRows,
    probes: ArtifactRef | None,
    pairs: ArtifactRef | SubsetRows | None,
    nulls: ArtifactRef | None,
    settings: ModelDiffSettings,
) -> None:
    """Per tensor its change; per label token of held-out rows, probes and chosen answers both models' distributions;
    flips of pairs; and how far the held-out figures stand out from those of null deltas."""
    models = model.open(run), model.moved_to(checkpoint).open(run)
    layers, parts = weight_changes(*models)
    draft.write_table("layers.parquet", layers)
    read, readable = direction_rows(models[0], parts, settings.directions)
    draft.write_table("directions.parquet", read)
    tables = {"heldout": rows.read(run)}
    for name, ref in (("probe", probes), ("chosen", pairs)):
        if ref is not None:
            tables[name] = read_some(run, ref)
    with device_lock(models[0]):
        summary = compared_sets(draft, models, tables, settings)
    moved = [row["module"] for row in layers if row["delta_norm"]]
    summary |= {
        "checkpoint_dtype": stored_dtypes(models[1], moved),
        "moved_tensors": len(moved),
        "modules_read": len({row["module"] for row in read}),
        "readable_modules": readable,
    }
    if nulls is not None:
        summary |= against_null_rows(summary, run.store.open(nulls).arrow("nulls.parquet").to_pylist())
    draft.write_json("summary.json", summary)


def compared_sets(
    draft: Any, models: tuple[LoadedModel, LoadedModel], tables: dict[str, Any], settings: ModelDiffSettings
) -> dict[str, Any]:
    """Tables of every set of rows, and their summary; a set without a label token is left out."""
    import pyarrow as pa

    from foretune.tasks.numerics.comparison import sample_sums

    summary: dict[str, Any] = {}
    every, bins, worst = [], [], []
    for name, table in tables.items():
        found = compare_rows(*models, table, settings.batch_tokens, settings.worst_tokens)
        if found is None:
            continue
        tokens, most = found
        sums = sample_sums(tokens, len(table))
        summary |= set_summary(name, tokens, sums, settings.ece_bins, settings.bootstrap)
        every.append(token_table(name, table, tokens))
        bins += calibration_rows(name, tokens, settings.ece_bins)
        worst += worst_tokens(name, table, most, models[0])
        if name == "heldout":
            draft.write_table("heldout.parquet", row_losses(table, sums))
        elif name == "probe":
            probed = probe_rows(table, sums, settings.regression)
            draft.write_table("probes.parquet", probed)
            summary["regressions"] = sum(row["regressed"] for row in probed)
        else:
            paired = pair_rows(*models, table, sums, settings.batch_tokens)
            draft.write_table("pairs.parquet", paired)
            summary |= pair_summary(paired, settings.bootstrap)
    draft.write_table("tokens.parquet", pa.concat_tables(every))
    draft.write_table("calibration.parquet", bins)
    draft.write_table("worst_tokens.parquet", worst)
    return summary
