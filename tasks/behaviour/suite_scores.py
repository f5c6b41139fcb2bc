"""One suite under one model: a score per item. The base model is asked once, whatever it is trained on."""

from __future__ import annotations

from typing import Any

from foretune.storage.errors import BadInput
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.behaviour.asked_model import placed
from foretune.tasks.behaviour.items import SuiteItems
from foretune.tasks.behaviour.score_table import table_of
from foretune.tasks.behaviour.settings import ScoringSettings
from foretune.tasks.engine.keys import NUMERICS
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.handles import ModelHandle, device_lock
from foretune.tasks.loading import at_weights, token_limits
from foretune.tasks.samples.chat import load_tokenizer
from foretune.tasks.samples.dataset import TokenizerHandle


@content_task(version=1, libraries=(*NUMERICS, "tokenizers", "jinja2", "google-re2"))
def suite_scores(
    draft: Any,
    run: Run,
    model: ModelHandle,
    weights: ArtifactRef | None,
    tokenizer: TokenizerHandle,
    items: SuiteItems,
    settings: ScoringSettings,
) -> None:
    """scores.parquet: per item its score (null: too long for the model), log-likelihoods in nats, and what was
    answered; summary.json: items scored and left out, mean score. `weights` are asked in the base's place: a
    checkpoint, or an artefact with a weight change."""
    from foretune.tasks.behaviour.scoring import score_items

    folder = tokenizer.folder(run)
    loaded, delta = placed(run, model, weights)
    limits = token_limits(folder)
    with device_lock(loaded), at_weights(loaded, delta):
        scored = score_items(loaded, load_tokenizer(folder), items.items, settings, limits.positions)
    kept = [each.score for each in scored if each is not None]
    if not kept:
        raise BadInput(f"suite {items.suite}: no item fits into the model's {limits.positions} positions; leave it out")
    draft.write_table("scores.parquet", table_of(items, scored))
    draft.write_json(
        "summary.json", {"items": len(kept), "left_out": len(scored) - len(kept), "mean": sum(kept) / len(kept)}
    )
