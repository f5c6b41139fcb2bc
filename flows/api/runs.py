"""A run that was saved, opened: its result, its request, and the tables, tensors and files of its passes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretune.storage.contents import Artifact
from foretune.storage.errors import BadInput
from foretune.storage.events import read_events, run_status
from foretune.storage.results import artifact_of, finished_result
from foretune.storage.runs import REPORT, Run, resolve_run

if TYPE_CHECKING:
    import pandas
    import torch

    from foretune.flows.request import Request

ROOT = ".foretune"
"""The storage root that requests have where they name none."""


def open_run(run_id: str = "latest", root: str | os.PathLike[str] = ROOT) -> StoredRun:
    """Open a run under a storage root, a folder or `s3://bucket/prefix`.

    `run_id` is a whole id, the start of one, the name that a request gave its runs (the newest of them), or "latest".
    Raises BadInput, a ValueError of one line that names the nearest ids, when none or several fit.
    """
    run = resolve_run(os.fspath(root), run_id)
    return StoredRun(run.root, run.run_id)


@dataclass(frozen=True)
class StoredRun:
    """One run, read anew at every access: what a pass has not stored yet may be there the next time.

    Every file is checked against the sha256 that was recorded when it was written: StorageFault (a RuntimeError) when
    it is not what it was. A name that the run does not have is a BadInput (a ValueError); both say in one line what
    there is, or what to do.
    """

    root: str
    run_id: str

    @property
    def status(self) -> str:
        """`completed`, `failed`, `stopped`, `unfinished`, or `unreadable` when result.json is torn."""
        return run_status(self._run)

    @property
    def result(self) -> dict[str, Any]:
        """result.json: what `foretune simulate --json` prints. BadInput while the run has not ended."""
        return finished_result(self._run)

    @property
    def request(self) -> Request:
        """The request that was run, every default filled in. BadInput when the run never wrote one."""
        from foretune.flows.request import stored_request

        return stored_request(self._run)

    @property
    def artifacts(self) -> list[str]:
        """Names of what the passes stored, for `table`, `tensors`, `json` and `folder`."""
        return list(self.result.get("artifacts", ()))

    @property
    def checkpoint(self) -> Path:
        """Local folder of the predicted model or adapter, as `from_pretrained` opens it. Only to be read."""
        return self.folder("checkpoint")

    @property
    def report(self) -> str:
        """Where the report lies: the path of one HTML file, or its `s3://` URI. BadInput when there is none."""
        place = self._run.place / REPORT
        if not place.exists():
            raise BadInput(f"run {self.run_id} has no report ({self.status}); run it again")
        return place.uri

    def table(self, artifact: str, file: str | None = None) -> pandas.DataFrame:
        """A Parquet file of an artefact as a data frame: `file`, else the only one, or the one named as the artefact.

        The columns and their units are those of the file (see the documentation of each artefact): losses and scores
        in nats, times in seconds.
        """
        opened, name = self._file(artifact, file, ".parquet")
        return opened.table(name)

    def tensors(self, artifact: str, file: str | None = None) -> dict[str, torch.Tensor]:
        """Every tensor of a safetensors file by its name, shapes and dtypes as stored, on the CPU, memory-mapped."""
        opened, name = self._file(artifact, file, ".safetensors")
        return opened.tensors(name)

    def json(self, artifact: str, file: str | None = None) -> Any:
        """The content of a JSON file of an artefact."""
        opened, name = self._file(artifact, file, ".json")
        return opened.json(name)

    def folder(self, artifact: str) -> Path:
        """Local folder of a whole artefact, downloaded first where the root lies on S3. Only to be read."""
        return self._open(artifact).folder()

    def events(self) -> list[dict[str, Any]]:
        """Every event of the run, oldest first: passes, progress, steps, signals and how it ended."""
        return read_events(self._run)

    @property
    def _run(self) -> Run:
        return Run(self.root, self.run_id)

    def _open(self, artifact: str) -> Artifact:
        return self._run.store.open(artifact_of(self._run, artifact))

    def _file(self, artifact: str, file: str | None, ending: str) -> tuple[Artifact, str]:
        """The artefact and the file that is meant: the one given, its ending left out or not; else the only one of the
        kind, or the one with the artefact's name."""
        opened = self._open(artifact)
        names = [name for name in opened.names() if name.endswith(ending)]
        wanted = (f"{artifact}{ending}",) if file is None else (file, f"{file}{ending}")
        fitting = names if file is None and len(names) == 1 else [name for name in names if name in wanted]
        if len(fitting) != 1:
            found = "several" if file is None and names else f"no {file or f'*{ending}'}"
            has = ", ".join(names or opened.names())
            raise BadInput(f"{artifact} of run {self.run_id} has {found}; give one of the files it has: {has}")
        return opened, fitting[0]
