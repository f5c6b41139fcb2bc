"""Pass 0 as tasks: every shard by itself, then one summary. No model, no torch."""

from __future__ import annotations

from typing import Any

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.passes import content_task
from foretune.tasks.quality.reduction import reduce_quality, shard_quality
from foretune.tasks.quality.settings import QualitySettings
from foretune.tasks.samples.dataset import row_numbers
from foretune.tasks.samples.rows import ShardRows

LIBRARIES = ("ahocorasick-rs", "ftfy", "google-re2", "rensa")


@content_task(version=3, libraries=LIBRARIES)
def quality_shard(draft: Any, run: Run, rows: ShardRows, settings: QualitySettings) -> None:
    """What each row of a shard says by itself."""
    draft.write_table("rows.parquet", shard_quality(rows.read(run), settings))


@content_task(version=3, libraries=LIBRARIES)
def quality(draft: Any, run: Run, samples: ArtifactRef, shards: list[ArtifactRef], settings: QualitySettings) -> None:
    """Flags per sample, counts per rule, overlap, duplicates, signals."""
    partials = [run.store.open(shard).arrow("rows.parquet") for shard in shards]
    found = reduce_quality(_renumbered(partials, row_numbers(run, samples)), settings)
    draft.write_table("samples.parquet", found.samples)
    draft.write_json("summary.json", found.summary | {"signals": found.signals})


def _renumbered(partials: list[Any], numbers: dict[str, int]) -> list[Any]:
    """The shards' tables with the row numbers of this dataset."""
    import pyarrow as pa

    renumbered = []
    for part in partials:
        rows = [numbers[sample_id] for sample_id in part["sample_id"].to_pylist()]
        at = part.schema.get_field_index("row")
        renumbered.append(part.set_column(at, part.schema.field(at), pa.array(rows, part.schema.field(at).type)))
    return renumbered
