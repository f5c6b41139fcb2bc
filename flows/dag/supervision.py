"""What is supervised, in the DAG: the training rows as the trainer sees them."""

from __future__ import annotations

from typing import Any

from foretune.flows.dag.wiring import Wiring
from foretune.tasks.samples.dataset import role_settings
from foretune.tasks.samples.supervision_pass import supervision


def supervised(wiring: Wiring) -> Any:
    """Findings and shown rows; reads the dataset's file again, since samples keep what is left after the cut alone."""
    return wiring.step(
        supervision,
        source=wiring.sources.rows["train"],
        samples=wiring.tables["train"],
        tokenizer=wiring.tokenizer,
        unread_splits=list(wiring.sources.unread_splits),
        dataset=role_settings(wiring.request.dataset, "train"),
        settings=wiring.request.supervision,
    )
