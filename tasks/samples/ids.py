"""Sample ids: the sha256 of what a row says, so that the set of ids ignores order and file names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from foretune.storage.digests import digest_of
from foretune.storage.errors import BadInput
from foretune.tasks.samples.forms import CanonicalRow


@dataclass(frozen=True)
class IdentifiedRow:
    """A canonical row and its id."""

    canonical: CanonicalRow
    content_id: str  # the same for equal rows: it decides on which side of a split they fall
    occurrence: int  # 0, 1, ... among equal rows

    @property
    def sample_id(self) -> str:
        """64 hex digits; the first of equal rows has the content's own id."""
        if self.occurrence == 0:
            return self.content_id
        return digest_of({"content": self.content_id, "occurrence": self.occurrence})


def identify(rows: Sequence[CanonicalRow]) -> list[IdentifiedRow]:
    """Give every row its content's id and its number among equal rows; the set of ids ignores the order."""
    seen: Counter[str] = Counter()
    identified = []
    for row in rows:
        content_id = _content_id(row)
        identified.append(IdentifiedRow(row, content_id, seen[content_id]))
        seen[content_id] += 1
    return identified


def _content_id(row: CanonicalRow) -> str:
    try:
        return digest_of(row.content())
    except (TypeError, ValueError) as error:
        raise BadInput(f"row {row.row}: a value has no JSON form ({error}); make it text") from None
