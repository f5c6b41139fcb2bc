"""Attempts written by hand: what is done, the command, the status that it must end with and words of its line."""

from __future__ import annotations

from tests.hostile.written.attempt import Written
from tests.hostile.written.datasets import BOMBS, ROWS
from tests.hostile.written.folders import LABELS, MODELS, SAES
from tests.hostile.written.processes import ENVIRONMENT
from tests.hostile.written.runs import DELETION, OUTPUTS, STORED
from tests.hostile.written.settings import BOUNDS, GATES, NAMES
from tests.hostile.written.unseen import SECRETS, TEXT

THEMES: dict[str, dict[str, Written]] = {
    "bounds": BOUNDS, "bombs": BOMBS, "text": TEXT, "secrets": SECRETS, "outputs": OUTPUTS, "deletion": DELETION, "stored": STORED,
    "rows": ROWS, "names": NAMES, "gates": GATES, "labels": LABELS, "environment of processes": ENVIRONMENT, "models": MODELS, "SAEs": SAES,
}  # fmt: skip
