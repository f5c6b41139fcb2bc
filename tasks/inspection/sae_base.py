"""The base model's side of the SAE diff, which no prediction changes."""

from __future__ import annotations

from typing import Any

from foretune.storage.runs import Run
from foretune.tasks.engine.keys import NUMERICS
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.handles import ModelHandle, SaeHandle
from foretune.tasks.inspection.activations import sample_activations
from foretune.tasks.inspection.settings import DiffSettings
from foretune.tasks.samples.rows import SubsetRows


@content_task(version=2, libraries=(*NUMERICS, "sae-lens"))
def sae_base(
    draft: Any, run: Run, model: ModelHandle, sae: SaeHandle, rows: SubsetRows, settings: DiffSettings
) -> None:
    """sums.safetensors: per sample its activation sums [n, d_sae] and label tokens [n], and on how many of these each
    feature fires [d_sae]; summary.json."""
    found = sample_activations(model.open(run), sae.open(), rows.read(run), settings)
    draft.write_tensors("sums.safetensors", {"sums": found.sums, "tokens": found.tokens, "fired": found.fired})
    draft.write_json("summary.json", {"explained_variance": found.explained})
