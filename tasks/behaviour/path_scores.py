"""One suite on the way to the predicted weights, at the ends of other orders of the rows, and under noise."""

from __future__ import annotations

from typing import Any

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.behaviour.items import SuiteItems
from foretune.tasks.behaviour.moved_weights import (
    NoiseSettings,
    module_norms,
    moved_weights,
    nothing_to_ask,
    scores_table,
)
from foretune.tasks.behaviour.settings import ScoringSettings
from foretune.tasks.engine.keys import NUMERICS
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.handles import ModelHandle, device_lock
from foretune.tasks.loading import AdapterSettings, at_weights, token_limits
from foretune.tasks.samples.chat import load_tokenizer
from foretune.tasks.samples.dataset import TokenizerHandle


@content_task(version=1, libraries=(*NUMERICS, "tokenizers", "jinja2", "google-re2"))
def path_scores(
    draft: Any,
    run: Run,
    model: ModelHandle,
    adapter: AdapterSettings,
    variants: ArtifactRef,
    prediction: ArtifactRef,
    tokenizer: TokenizerHandle,
    items: SuiteItems,
    noise: NoiseSettings,
    settings: ScoringSettings,
) -> None:
    """scores.parquet: per weights (waypoint, order or null) and item its score; null where an item does not fit.

    A null delta has the norm of the prediction's in every module, and the adapter's rank.
    """
    from foretune.tasks.behaviour.scoring import score_items

    folder, stored = tokenizer.folder(run), run.store.open(variants)
    norms = module_norms(run, prediction)
    if nothing_to_ask(stored, noise):  # no model is opened
        draft.write_table("scores.parquet", scores_table([]))
        return
    loaded, limits, known, rows = model.open(run), token_limits(folder), load_tokenizer(folder), []
    with device_lock(loaded):
        for kind, step, seed, delta in moved_weights(loaded, stored, norms, adapter, noise):
            with at_weights(loaded, delta) as moved:
                scored = score_items(moved, known, items.items, settings, limits.positions)
            rows += [
                {"kind": kind, "step": step, "seed": seed, "digest": item.digest, "score": each and each.score}
                for item, each in zip(items.items, scored, strict=True)
            ]
    draft.write_table("scores.parquet", scores_table(rows))
