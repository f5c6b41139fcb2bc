"""One task of lm-evaluation-harness on the way, at the ends of other orders of the rows, and under noise."""

from __future__ import annotations

from typing import Any

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.behaviour.harness_settings import HarnessSettings
from foretune.tasks.behaviour.harness_tasks import HarnessTask
from foretune.tasks.behaviour.moved_weights import (
    NoiseSettings,
    module_norms,
    moved_weights,
    nothing_to_ask,
    scores_table,
)
from foretune.tasks.engine.keys import NUMERICS
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.handles import ModelHandle, device_lock
from foretune.tasks.loading import AdapterSettings, at_weights
from foretune.tasks.samples.dataset import TokenizerHandle


@content_task(version=1, libraries=(*NUMERICS, "tokenizers", "lm_eval"))
def harness_path_scores(
    draft: Any,
    run: Run,
    model: ModelHandle,
    adapter: AdapterSettings,
    variants: ArtifactRef,
    prediction: ArtifactRef,
    tokenizer: TokenizerHandle,
    items: HarnessTask,
    noise: NoiseSettings,
    settings: HarnessSettings,
) -> None:
    """scores.parquet as `path_scores` writes it."""
    from foretune.tasks.behaviour.harness import harness_rows

    stored, norms = run.store.open(variants), module_norms(run, prediction)
    if nothing_to_ask(stored, noise):  # no model is opened
        draft.write_table("scores.parquet", scores_table([]))
        return
    loaded, folder, rows = model.open(run), tokenizer.folder(run), []
    with device_lock(loaded):
        for kind, step, seed, delta in moved_weights(loaded, stored, norms, adapter, noise):
            with at_weights(loaded, delta) as moved:
                scored = harness_rows(moved, folder, items, items.limit, settings.batch_tokens)
            rows += [
                {"kind": kind, "step": step, "seed": seed, "digest": each["digest"], "score": each["score"]}
                for each in scored
            ]
    draft.write_table("scores.parquet", scores_table(rows))
