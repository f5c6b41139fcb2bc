"""Baselines: the findings that are known, by fingerprint, so that only new ones are shown and fail."""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING, Any

from foretune.storage.documents import json_value
from foretune.storage.errors import BadInput
from foretune.storage.places import read_named

if TYPE_CHECKING:
    from foretune.tasks.quality.lint_findings import Linting
    from foretune.tasks.quality.settings import QualitySettings

MOST_BYTES = 512 * 2**20
REMEDY = "write it with foretune quality --write-baseline"


def read_baseline(uri: str) -> frozenset[str]:
    """The fingerprints of a baseline; BadInput for what is none."""
    value = json_value(read_named(uri, "baseline", MOST_BYTES), f"baseline {uri}", REMEDY)
    known = value.get("fingerprints") if isinstance(value, dict) else None
    if not isinstance(known, list) or value.get("version") != 1 or not all(isinstance(k, str) for k in known):
        raise BadInput(f"baseline {uri}: no baseline of version 1; {REMEDY}")
    return frozenset(known)


def without_known(linting: Linting, known: Set[str], settings: QualitySettings) -> tuple[Linting, int]:
    """The findings that are new with their counts, and how many are known."""
    if not known:
        return linting, 0
    import numpy as np
    import pyarrow as pa

    from foretune.tasks.quality.lint_findings import Linting

    new = np.array([key not in known for key in linting.findings["fingerprint"].to_pylist()], bool)
    findings = linting.findings.filter(pa.array(new))
    return Linting(findings, linting.summary | counted(findings, settings)), int((~new).sum())


def counted(findings: Any, settings: QualitySettings) -> dict[str, Any]:
    """Rows per rule, flagged rows and the first rows, of a table of findings."""
    rows: dict[str, set[int]] = {}
    for rule, row in zip(findings["rule"].to_pylist(), findings["row"].to_pylist(), strict=True):
        rows.setdefault(rule, set()).add(-1 if row is None else row)
    notes = settings.notes()
    flagged: set[int] = set().union(*(found for rule, found in rows.items() if rule not in notes)) - {-1}
    return {
        "flagged_rows": len(flagged),
        "counts": {rule: len(rows.get(rule, ())) for rule in settings.active()},
        "first_rows": {rule: sorted(found)[:5] for rule, found in rows.items()},
    }
