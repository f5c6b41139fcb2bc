"""The shape of what runs and vettings keep as JSON: the fields that are read again, each with its type.

Anything else in a file is left as it is: an earlier or a later version may have written more.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from foretune.storage.manifest import ARTEFACT_NAME


def _ends_in_task_and_key(uri: str) -> str:
    if not all(ARTEFACT_NAME.fullmatch(part) for part in uri.rstrip("/").split("/")[-2:]) or uri.count("/") < 1:
        raise ValueError("not the place of an artefact")
    return uri


class Record(BaseModel):
    model_config = ConfigDict(extra="allow")


class StoredArtifact(Record):
    uri: Annotated[str, AfterValidator(_ends_in_task_and_key)]
    sha256: str


class StoredSignal(Record):
    name: str
    severity: str


class Summary(Record):
    answer: str | None = None
    rows: int | None = None
    heldout_loss_base: float | None = None
    heldout_loss_predicted: float | None = None
    heldout_loss_evaluated: float | None = None
    train_loss_base: float | None = None
    sharpness: float | None = None
    noise_scale_tokens: float | None = None
    flagged_rows: float | None = None
    samples_that_harm: float | None = None
    samples_that_help: float | None = None
    horizon: float | None = None


class StoredSuite(Record):
    suite: str
    base: float
    predicted: float
    change: float
    verdict: str


class StoredShip(Record):
    verdict: str
    reasons: list[str]


class StoredResult(Record):
    """result.json."""

    status: str = "finished"
    request: dict[str, Any] = {}
    artifacts: dict[str, StoredArtifact] = {}
    signals: list[StoredSignal] = []
    summary: Summary = Summary()
    behaviour: list[StoredSuite] | None = None
    ship: StoredShip | None = None


class AcceptedVersion(Record):
    """accepted/<name>.json."""

    run_id: str
    summary: dict[str, Any] = {}


class Crossed(Record):
    subject: str
    value: float | str | None
    threshold: float | str
    verdict: str
    reason: str


class Changes(Record):
    compared_with: str = Field(alias="with")
    added: int
    removed: int
    flipped: int


class StoredVerdict(Record):
    """verdicts/<name>/<key>.json."""

    verdict: str
    dataset: str
    run_id: str
    accepted: bool
    crossings: list[Crossed]
    skipped: list[str]
    comparison: Changes | None
