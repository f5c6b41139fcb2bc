"""Rates: what passes took on this machine, in the user's cache folder. A new root has no manifests to learn from."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from foretune.storage.cache import cache_dir, new_draft
from foretune.storage.digests import digest_of
from foretune.storage.manifest import Manifest

KEPT = 50  # newest measurements of one kind


@dataclass(frozen=True)
class Took:
    """One computed artefact: what it took, and how much went in."""

    seconds: float
    bytes: int
    work: dict[str, int]  # rows, tokens, parts
    cost: dict[str, float] = field(default_factory=dict)  # forward_tokens and backward_tokens through a model

    @classmethod
    def of(cls, manifest: Manifest) -> Took:
        return cls(manifest.seconds, manifest.bytes, manifest.work, manifest.cost)


def remember_rate(manifest: Manifest) -> None:
    """Keep what this artefact took; a cache folder that cannot be written costs the estimate, not the run."""
    file = _file(manifest.task, manifest.inputs.get("model"))
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(Took.of(manifest))) + "\n")
        if file.stat().st_size > 400 * KEPT:  # a line has about 100 bytes
            kept = file.parent / new_draft(f".{file.name}")
            kept.write_text("".join(file.read_text(encoding="utf-8").splitlines(keepends=True)[-KEPT:]))
            os.replace(kept, file)


def remembered_rates(task: str, model: Any) -> list[Took]:
    """The newest measurements of a task with this model (its identity in keys; None for a pass without one)."""
    found = []
    with contextlib.suppress(OSError):
        for line in _file(task, model).read_text(encoding="utf-8").splitlines()[-KEPT:]:
            with contextlib.suppress(ValueError, TypeError):  # half a line, of a writer that was killed
                found.append(Took(**json.loads(line)))
    return found


def _file(task: str, model: Any) -> Path:
    return cache_dir() / "rates" / f"{task}-{digest_of(model)[:16]}.jsonl"
