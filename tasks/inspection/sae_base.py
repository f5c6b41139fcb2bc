"""The base model's side of the SAE diff, which no prediction changes."""

from __future__ import annotations

from typing import Any

from foretune.storage.runs import Run
from foretune.tasks.engine.keys import NUMERICS
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.handles import ModelHandle, SaeHandle, SaeHandles, opened_saes
from foretune.tasks.inspection.activations import sample_activations
from foretune.tasks.inspection.settings import DiffSettings
from foretune.tasks.samples.rows import SubsetRows


@content_task(version=2, libraries=(*NUMERICS, "sae-lens"))
def sae_base(
    draft: Any, run: Run, model: ModelHandle, sae: SaeHandle | SaeHandles, rows: SubsetRows, settings: DiffSettings
) -> None:
    """sums.safetensors: per sample its activation sums [n, d_sae] and label tokens [n], and on how many of these each
    feature fires [d_sae]; summary.json. Of several SAEs each in the folder of its place."""
    read = sample_activations(model.open(run), opened_saes(sae), rows.read(run), settings)
    for folder, found in zip(sae.folders, read, strict=True):
        tensors = {"sums": found.sums, "tokens": found.tokens, "fired": found.fired}
        draft.write_tensors(f"{folder}sums.safetensors", tensors)
        draft.write_json(f"{folder}summary.json", {"explained_variance": found.explained})
