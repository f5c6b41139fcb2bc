"""Two versions of a dataset: which rows came, went and changed, and what the rules say of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foretune.storage.errors import BadInput
from foretune.storage.row_batches import Unread, parsed, row_batches
from foretune.tasks.quality.lint import lint
from foretune.tasks.samples.forms import canonical_rows, shown_texts
from foretune.tasks.samples.ids import identify

if TYPE_CHECKING:
    from foretune.tasks.quality.settings import QualitySettings


@dataclass(frozen=True)
class _Version:
    ids: list[str]  # of every row that can be read
    rows: list[int]
    prompts: list[str]
    flags: dict[int, list[str]]  # row -> rules
    counts: dict[str, int]

    @classmethod
    def of(cls, uri: str, settings: QualitySettings) -> _Version:
        ids, rows, prompts, number = [], [], [], 0
        for batch in row_batches(uri):
            read = parsed(batch)[0]
            readable = [(number + at, row) for at, row in enumerate(read) if not isinstance(row, Unread)]
            number += len(read)
            # Strictly: a version with a row that no run would read is no version.
            try:
                canonical = canonical_rows([row for _, row in readable])
            except BadInput as error:
                raise BadInput(f"{uri}: {error}") from None
            ids += [each.content_id for each in identify(canonical)]
            rows += [at for at, _ in readable]
            prompts += [" ".join(shown_texts(row)[0].split()) for row in canonical]
        linting = lint(uri, settings)
        flags: dict[int, list[str]] = defaultdict(list)
        for row, rule in zip(linting.findings["row"].to_pylist(), linting.findings["rule"].to_pylist(), strict=True):
            if row is not None and rule not in flags[row]:
                flags[row].append(rule)
        return cls(ids, rows, prompts, dict(flags), linting.summary["counts"])


def dataset_changes(old: str, new: str, settings: QualitySettings) -> dict[str, Any]:
    """Rows added, removed and changed (the same prompt with another answer), each with its flags, and the rules whose
    counts differ. Rows count from 0 in their own file; their order does not matter."""
    before, after = _Version.of(old, settings), _Version.of(new, settings)
    gone, came = _only(before, after), _only(after, before)
    removed: dict[str, list[int]] = defaultdict(list)
    for at in gone:
        if before.prompts[at]:
            removed[before.prompts[at]].append(at)
    changed, added = [], []
    for at in came:
        same = removed.get(after.prompts[at])
        if same:
            was = same.pop(0)
            changed.append(
                {"row": after.rows[at], "old_row": before.rows[was], **_said(after, at), "had": _flags(before, was)}
            )
            gone.remove(was)
        else:
            added.append({"row": after.rows[at], **_said(after, at)})
    return {
        "old": old,
        "new": new,
        "kept": len(after.ids) - len(came),
        "added": added,
        "changed": changed,
        "removed": [{"row": before.rows[at], **_said(before, at)} for at in gone],
        "counts": {
            rule: {"old": before.counts.get(rule, 0), "new": count}
            for rule, count in after.counts.items()
            if count != before.counts.get(rule, 0)
        },
    }


def _only(version: _Version, other: _Version) -> list[int]:
    """Positions of the rows that the other version does not have, or not as often."""
    left = Counter(other.ids)
    only = []
    for at, sample_id in enumerate(version.ids):
        left[sample_id] -= 1
        if left[sample_id] < 0:
            only.append(at)
    return only


def _said(version: _Version, at: int) -> dict[str, Any]:
    return {"sample_id": version.ids[at], "flags": _flags(version, at)}


def _flags(version: _Version, at: int) -> list[str]:
    return version.flags.get(version.rows[at], [])
