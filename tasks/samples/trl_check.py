"""Our tokens and labels of some rows against those of the installed TRL's collator."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foretune.tasks.loading.trl_rows import trainer_rows, trl_version
from foretune.tasks.samples.forms import CanonicalRow
from foretune.tasks.samples.supervision import Seen, SeenRow, Supervised

SAMPLE = 64
"""Rows that are compared: as far apart in the file as they can be."""


@dataclass(frozen=True)
class Difference:
    """The first token at which a row differs."""

    row: int
    sequence: str  # "row", "chosen" or "rejected"
    says: str


@dataclass(frozen=True)
class TrlCheck:
    """What a comparison found."""

    trl: str  # its version
    compared: list[int]  # row numbers
    differences: list[Difference]


def check_against_trl(seen: Seen, folder: Path, rows: list[int] | None = None) -> TrlCheck:
    """Compare a sample of the rows, or these. Raises BadInput without trl, and for what it refuses."""
    version = trl_version()
    chosen = [row for row in seen.rows if rows is None or row.row in set(rows)]
    step = max(len(chosen) / SAMPLE, 1.0)
    sample = [chosen[int(at * step)] for at in range(min(len(chosen), SAMPLE))]
    pairs = bool(sample) and sample[0].canonical.form == "preference"
    rules = seen.rules
    settings: dict[str, Any] = {"max_length": rules.max_length}
    if not pairs:
        settings |= {
            "assistant_only_loss": rules.assistant_only_loss,
            "completion_only_loss": rules.completion_only_loss,
        }
    theirs = trainer_rows(folder, [_as_trl_reads(row.canonical) for row in sample], pairs, settings)
    differences = [
        difference for at, row in enumerate(sample) for difference in _differences(row, theirs.get(at), seen)
    ]
    return TrlCheck(version, [row.row for row in sample], differences)


def _as_trl_reads(row: CanonicalRow) -> dict[str, Any]:
    names = {
        "text": {"text": row.completion},
        "messages": {"messages": row.completion},
        "prompt_completion": {"prompt": row.prompt, "completion": row.completion},
        "preference": {"prompt": row.prompt, "chosen": row.completion, "rejected": row.rejected},
    }[row.form]
    extra = {"tools": row.tools, "chat_template_kwargs": row.template_kwargs}
    return names | {name: value for name, value in extra.items() if value}


def _differences(row: SeenRow, theirs: list[tuple[list[int], list[bool]]] | None, seen: Seen) -> list[Difference]:
    if theirs is None:
        trained = any(any(sequence.loss_mask[: sequence.kept]) for sequence in row.sequences)
        return [Difference(row.row, "row", "trl leaves the row out, foretune trains on it")] if trained else []
    found = []
    for sequence, (ids, labels) in zip(row.sequences, theirs, strict=True):
        says = _first_difference(sequence, ids, labels, seen)
        if says is not None:
            found.append(Difference(row.row, sequence.name, says))
    return found


def _first_difference(sequence: Supervised, ids: list[int], labels: list[bool], seen: Seen) -> str | None:
    own, mask = sequence.ids[: sequence.kept], sequence.loss_mask[: sequence.kept]
    for at, (mine, other) in enumerate(zip(own, ids, strict=False)):
        if mine != other:
            name = seen.tokenizer.backend.id_to_token
            return f"token {at} is {mine} ({name(mine)}), of trl {other} ({name(other)})"
        if mask[at] != labels[at]:
            words = {True: "trained on", False: "not trained on"}
            return f"token {at} is {words[mask[at]]}, by trl {words[labels[at]]}"
    return f"{len(own)} tokens, of trl {len(ids)}" if len(own) != len(ids) else None
