"""Runs: <root>/runs/<run-id>/ with the request, the result, the events and the report of one run."""

from __future__ import annotations

import difflib
import json
import re
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from foretune.storage.artifacts import ArtifactStore
from foretune.storage.display import json_shown, json_visible
from foretune.storage.documents import json_object
from foretune.storage.drafts import to_json
from foretune.storage.errors import BadInput
from foretune.storage.places import Place
from foretune.storage.records import StoredResult
from foretune.storage.redaction import redacted_tree
from foretune.storage.roots import root_to_read, root_to_write
from foretune.storage.slugs import slug

REQUEST, RESULT, REPORT, COMPARISON = "request.yaml", "result.json", "report.html", "comparison.json"
WHATIF_PAGE, WHATIF = "whatif.html", "whatif.json"
HISTORY_PAGE, FEATURES_PAGE = "history.html", "features.html"
PLANNED = "planned.json"
RUN_FILES = (REQUEST, PLANNED, REPORT, COMPARISON, WHATIF_PAGE, WHATIF, HISTORY_PAGE, FEATURES_PAGE, RESULT)
"""What a run's folder holds beside its events, in the order in which a deletion takes it: what a run is, is told by
its result."""
_ID = re.compile(r"(?P<time>\d{8}-\d{6})-(?P<name>.+)-[0-9a-f]{4}")
_GIVEN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_LONGEST_NAME = 40  # characters; with time and tail well under every file system's 255 bytes


def new_run_id(now: datetime, name: str) -> str:
    """`20261122-211438-tickets-1a2b`: sorts by time (UTC when `now` has a zone), safe in paths and URLs."""
    moment = now.astimezone(UTC) if now.tzinfo else now
    return f"{moment:%Y%m%d-%H%M%S}-{_run_name(name)}-{secrets.token_hex(2)}"


def _run_name(name: str) -> str:
    return slug(name, _LONGEST_NAME) or "run"


def checked_run_id(run_id: str) -> str:
    """A run id that somebody gave; BadInput for one that would not be one folder's name."""
    if not _GIVEN_ID.fullmatch(run_id):
        raise BadInput(f"run_id {run_id!r}: give letters, digits, '.', '_' and '-' only, 128 at most, or none")
    return run_id


@dataclass(frozen=True)
class Run:
    """One run's folder. Its files appear one by one; any of them may be missing after a crash."""

    root: str
    run_id: str
    verify: Literal["sizes", "full"] = field(default="sizes", compare=False)  # of artefacts that are looked up

    @property
    def place(self) -> Place:
        return Place(self.root) / "runs" / self.run_id

    @property
    def store(self) -> ArtifactStore:
        return ArtifactStore(self.root, full=self.verify == "full")

    @property
    def name(self) -> str:
        """The part of the id between time and tail."""
        found = _ID.fullmatch(self.run_id)
        return found["name"] if found else self.run_id

    @property
    def is_dated(self) -> bool:
        """Whether the id is of the form that `new_run_id` makes."""
        return _ID.fullmatch(self.run_id) is not None

    def write_request(self, text: str) -> None:
        """The first file of a run; it makes the root a root."""
        root_to_write(self.root)
        (self.place / REQUEST).write_bytes(text.encode())

    def write_result(self, result: dict[str, Any]) -> None:
        """Written last: a run with a result has ended. NaN and infinities are refused."""
        # A name that a secret of the environment happens to be must not break the places that are read again.
        kept = {
            name: item if name in ("request", "artifacts") else redacted_tree(item) for name, item in result.items()
        }
        (self.place / RESULT).write_bytes((json_visible(to_json(kept, indent=1)) + "\n").encode())

    def write_report(self, html: str) -> None:
        (self.place / REPORT).write_bytes(html.encode())

    def write_features(self, html: str) -> None:
        (self.place / FEATURES_PAGE).write_bytes(html.encode())

    def write_comparison(self, compared: dict[str, Any]) -> None:
        (self.place / COMPARISON).write_bytes((json_shown(compared, _indented) + "\n").encode())

    def write_whatif(self, result: dict[str, Any], html: str) -> None:
        (self.place / WHATIF_PAGE).write_bytes(html.encode())
        (self.place / WHATIF).write_bytes((json_shown(result, _indented) + "\n").encode())

    def write_planned(self, planned: dict[str, Any]) -> None:
        """What the run's tasks are said to cost, once all are submitted."""
        (self.place / PLANNED).write_bytes((json_shown(planned, to_json) + "\n").encode())

    def read_planned(self) -> list[dict[str, Any]]:
        """What its tasks were said to cost; nothing of a run that kept no such file, or a damaged one."""
        try:
            return json.loads((self.place / PLANNED).read_bytes())["tasks"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return []

    def write_history(self, html: str) -> None:
        """The page of the versions up to this one."""
        (self.place / HISTORY_PAGE).write_bytes(html.encode())

    def read_request(self) -> str:
        """FileNotFoundError when the run never wrote one, BadInput when the file is no text."""
        file = self.place / REQUEST
        try:
            return file.read_bytes().decode()
        except UnicodeDecodeError as error:
            raise BadInput(f"{file.uri}: not UTF-8 text ({error.reason}); simulate it again") from None

    def read_result(self) -> dict[str, Any]:
        """FileNotFoundError while the run has not ended, BadInput when the file is not such a JSON object."""
        file = self.place / RESULT
        return json_object(file.read_bytes(), file.uri, StoredResult, "run it again")

    def read_report(self) -> str:
        """FileNotFoundError when the run wrote none."""
        return (self.place / REPORT).read_bytes().decode(errors="replace")

    def read_features(self) -> str | None:
        """The feature browser's page; None for a run without an SAE, or of before there was one."""
        try:
            return (self.place / FEATURES_PAGE).read_bytes().decode(errors="replace")
        except FileNotFoundError:
            return None


def _indented(value: Any) -> str:
    return to_json(value, indent=1)


def list_runs(root: str) -> list[Run]:
    """Every run under the root, oldest first, unfinished ones too; one listing."""
    place = root_to_read(root)
    return [Run(place.uri, run_id) for run_id in (place / "runs").folders()]


def runs_named(root: str, name: str) -> list[Run]:
    """The runs of requests of this name, newest first, unfinished ones too."""
    return [run for run in reversed(list_runs(root)) if run.name == _run_name(name)]


def resolve_run(root: str, name: str) -> Run:
    """The run that `name` means: a whole id, a path that ends in one, "latest", the start of one id, or the
    name that a request gave its runs (the newest of them).

    Raises BadInput with the nearest ids when none or several fit.
    """
    runs = {run.run_id: run for run in list_runs(root)}
    if not runs:
        raise BadInput(f"{Place(root).uri}: no runs here; start one with `foretune simulate` or give --root")
    wanted = name.rstrip("/").rsplit("/", 1)[-1]
    if wanted in runs:
        return runs[wanted]
    if wanted == "latest":
        return runs[max(runs)]
    started = [run_id for run_id in runs if wanted and run_id.startswith(wanted)]
    if len(started) == 1:
        return runs[started[0]]
    if len(started) > 1:
        raise BadInput(f"run {name!r} may be any of {_some(started)}; give more of the id")
    named = [run_id for run_id, run in runs.items() if run.name == wanted]
    if named:
        return runs[max(named)]
    near = difflib.get_close_matches(wanted, runs, n=3, cutoff=0.3) or sorted(runs)[-3:]
    raise BadInput(f"no run {name!r} under {Place(root).uri}; nearest: {_some(near)}")


def _some(run_ids: list[str]) -> str:
    shown = ", ".join(run_ids[:5])
    return f"{shown} and {len(run_ids) - 5} more" if len(run_ids) > 5 else shown
