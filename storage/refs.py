"""References: what passes hand to each other instead of the artefacts themselves."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class ArtifactRef(BaseModel):
    """What travels between passes: which artefact, where, and the digest of its content."""

    model_config = ConfigDict(frozen=True)

    task: str
    key: str
    uri: str
    sha256: str
    cached: bool = False  # found, not computed by this run
