"""One task of lm-evaluation-harness under one model: a score per item, as of any suite."""

from __future__ import annotations

from typing import Any

from foretune.storage.errors import BadInput
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.behaviour.asked_model import placed
from foretune.tasks.behaviour.harness_settings import HarnessSettings
from foretune.tasks.behaviour.harness_tasks import HarnessTask
from foretune.tasks.behaviour.score_table import table_of_rows
from foretune.tasks.engine.keys import NUMERICS
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.handles import ModelHandle, device_lock
from foretune.tasks.loading import at_weights
from foretune.tasks.samples.dataset import TokenizerHandle


@content_task(version=1, libraries=(*NUMERICS, "tokenizers", "lm_eval"))
def harness_scores(
    draft: Any,
    run: Run,
    model: ModelHandle,
    weights: ArtifactRef | None,
    tokenizer: TokenizerHandle,
    items: HarnessTask,
    settings: HarnessSettings,
) -> None:
    """scores.parquet and summary.json as `suite_scores` writes them; `weights` are asked in the base's place."""
    from foretune.tasks.behaviour.harness import harness_rows

    loaded, delta = placed(run, model, weights)
    with device_lock(loaded), at_weights(loaded, delta):
        rows = harness_rows(loaded, tokenizer.folder(run), items, items.limit, settings.batch_tokens)
    if not rows:
        raise BadInput(f"behaviour.lm_eval: {items.task} has no item; leave it out")
    draft.write_table("scores.parquet", table_of_rows(rows))
    mean = sum(row["score"] for row in rows) / len(rows)
    draft.write_json("summary.json", {"items": len(rows), "left_out": 0, "mean": mean})
