"""The predicted checkpoint: base weights plus the predicted delta, as a normal Hugging Face folder."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.invariants import CHECKPOINT_VERIFIED
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.adapter_factors import stored_change
from foretune.tasks.inputs.handles import ModelHandle
from foretune.tasks.loading import verify_checkpoint, write_checkpoint


class CheckpointSettings(BaseModel):
    """How the checkpoint is written."""

    model_config = ConfigDict(extra="forbid", title="Checkpoint")

    version: Literal[1] = 1
    max_shard_size: str = Field(default="2GB", title="Largest safetensors file", pattern=r"^\d{1,6}(MB|GB)$")


@content_task(version=1)
def checkpoint(
    draft: Any,
    run: Run,
    model: ModelHandle,
    prediction: ArtifactRef,
    settings: CheckpointSettings,
) -> None:
    """Merge, write, re-open, verify: same keys, dtypes, shapes and tokenizer as the base, finite logits."""
    loaded = model.open(run)
    delta = stored_change(run.store.open(prediction))
    base = model.folder(run)
    write_checkpoint(draft.folder, loaded, delta, base, settings.max_shard_size)
    compared = verify_checkpoint(draft.folder, base, model.settings)
    draft.check(
        CHECKPOINT_VERIFIED,
        "the written folder, opened again, with the base model's: keys, dtypes, shapes, companion files, logits",
        **dataclasses.asdict(compared),
    )
