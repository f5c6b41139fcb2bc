"""The ledger of a vetted dataset: which run was accepted last, and the verdict on every version seen so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from foretune.storage.display import json_shown
from foretune.storage.documents import json_object
from foretune.storage.drafts import to_json
from foretune.storage.places import Place
from foretune.storage.records import AcceptedVersion, Record, StoredVerdict
from foretune.storage.roots import root_to_read, root_to_write
from foretune.storage.slugs import slug


@dataclass(frozen=True)
class Ledger:
    """<root>/accepted/<name>.json and <root>/verdicts/<name>/<key>.json; each is replaced whole."""

    root: str
    name: str

    def accepted(self) -> dict[str, Any] | None:
        """What `accept` wrote last, or None when no version was accepted yet."""
        root_to_read(self.root)
        return _read(self._pointer, AcceptedVersion)

    def accept(self, record: dict[str, Any]) -> None:
        """Move the pointer."""
        root_to_write(self.root)
        _write(self._pointer, record)

    def verdict(self, key: str) -> dict[str, Any] | None:
        """The verdict stored under `key`, or None."""
        root_to_read(self.root)
        return _read(self._verdicts / f"{key}.json", StoredVerdict)

    def verdicts(self) -> list[dict[str, Any]]:
        """Every verdict on every version, the oldest first by its own time."""
        root_to_read(self.root)
        names = [name for name in self._verdicts.list() if name.endswith(".json")]
        found = [_read(self._verdicts / name, StoredVerdict) for name in names]
        return sorted((each for each in found if each is not None), key=lambda each: str(each.get("time", "")))

    def keep(self, key: str, verdict: dict[str, Any]) -> None:
        root_to_write(self.root)
        _write(self._verdicts / f"{key}.json", verdict)

    @property
    def _slug(self) -> str:
        return slug(self.name) or "dataset"

    @property
    def _pointer(self) -> Place:
        return Place(self.root) / "accepted" / f"{self._slug}.json"

    @property
    def _verdicts(self) -> Place:
        return Place(self.root) / "verdicts" / self._slug


def accepted_runs(root: str) -> set[str]:
    """Ids of the runs that a pointer under this root names."""
    folder = Place(root) / "accepted"
    return {
        pointer["run_id"] for name in folder.list() if (pointer := _read(folder / name, AcceptedVersion)) is not None
    }


def _read(place: Place, model: type[Record]) -> dict[str, Any] | None:
    try:
        return json_object(place.read_bytes(), place.uri, model, "delete the file and vet again")
    except FileNotFoundError:
        return None


def _write(place: Place, content: dict[str, Any]) -> None:
    place.write_bytes((json_shown(content, lambda plain: to_json(plain, indent=1)) + "\n").encode())
