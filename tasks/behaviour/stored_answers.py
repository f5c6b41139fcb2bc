"""Answers that are stored, read again."""

from __future__ import annotations

from typing import Any

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run


def greedy(run: Run, generations: ArtifactRef) -> dict[str, dict[str, Any]]:
    """The greedy answers of a `generations` artefact, by prompt."""
    rows = run.store.open(generations).arrow("generations.parquet").to_pylist()
    return {row["prompt_id"]: row for row in rows if row["sample"] == 0}
