"""The manifest: the last file written into an artefact, and what makes it one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from foretune.storage.checks import Check
from foretune.storage.digests import digest_of
from foretune.storage.places import safe_name

MANIFEST = "manifest.json"
ARTEFACT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Of a task, and of a key."""


class FileRecord(BaseModel):
    """What a file must be on disk for the artefact to count."""

    model_config = ConfigDict(frozen=True)

    sha256: str
    bytes: int


class Manifest(BaseModel):
    """artifacts/<task>/<key>/manifest.json: what the artefact was made of, by what, and what it holds."""

    model_config = ConfigDict(frozen=True)

    manifest_version: Literal[1] = 1
    task: str
    key: str
    version: int  # of the pass that wrote it
    inputs: dict[str, Any]  # what the key was made of
    files: dict[str, FileRecord]  # by name relative to the artefact's folder
    seconds: float  # wall time from the first to the last byte
    created: str  # ISO 8601, UTC
    git_commit: str | None = None
    libraries: dict[str, str] = {}
    work: dict[str, int] = {}  # how much went in, for estimates: rows, tokens, parts
    cost: dict[str, int | float] = {}  # what was computed: forward_tokens and backward_tokens through a model
    run_id: str | None = None  # the run that wrote it
    checks: list[Check] = []  # invariants that were looked at while it was written

    @property
    def sha256(self) -> str:
        """Digest of the content: file names and their digests, not times or machines."""
        return digest_of({name: record.sha256 for name, record in self.files.items()})

    @property
    def bytes(self) -> int:
        """Size of all files together, the manifest left out."""
        return sum(record.bytes for record in self.files.values())

    def to_bytes(self) -> bytes:
        text = json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False)
        return (text + "\n").encode("utf-8", errors="surrogatepass")

    @staticmethod
    def from_bytes(data: bytes) -> Manifest:
        """Raises ValueError for anything that is not a whole manifest of this version."""
        try:
            manifest = Manifest.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "it"
            raise ValueError(f"{where}: {first['msg']}") from error
        if not _names_artefacts(manifest.inputs):
            raise ValueError("inputs: a reference that names no artefact")
        unsafe = [name for name in manifest.files if not safe_name(name)]
        if unsafe or not manifest.files:
            raise ValueError(f"files: {unsafe or 'none'}")
        return manifest


def _names_artefacts(inputs: Any) -> bool:
    """Whether every reference in `inputs`, a mapping of task and key alone, holds two names."""
    if isinstance(inputs, dict):
        if set(inputs) == {"task", "key"}:
            return all(isinstance(name, str) and ARTEFACT_NAME.fullmatch(name) for name in inputs.values())
        return all(map(_names_artefacts, inputs.values()))
    return all(map(_names_artefacts, inputs)) if isinstance(inputs, list) else True


def artefacts_in(inputs: Any) -> Iterator[tuple[str, str]]:
    """(task, key) of every artefact that a pass's inputs refer to, at whatever depth."""
    if isinstance(inputs, dict):
        if set(inputs) == {"task", "key"}:
            yield inputs["task"], inputs["key"]
            return
        inputs = list(inputs.values())
    for each in inputs if isinstance(inputs, list) else ():
        yield from artefacts_in(each)
