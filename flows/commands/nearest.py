"""The earlier run of a root that a plan is most like: what would be computed is explained against that one."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from foretune.flows.commands.garbage import reachable
from foretune.storage.errors import BadInput
from foretune.storage.ownership import can_be_followed
from foretune.storage.results import task_and_key
from foretune.storage.runs import Run, list_runs

NEWEST = 50
"""Runs that are looked at: a result is a file each, and what a plan is like is rarely older."""
ASIDE = ("runtime", "name")
"""Sections of a request that change no result."""


@dataclass(frozen=True)
class Nearest:
    """The run, and what makes it the nearest."""

    run: Run
    shared: int  # of its named artefacts, those that the plan has too
    named: int
    settings: tuple[str, ...]  # that differ, by their dotted names

    @property
    def words(self) -> str:
        """Why it is this one."""
        count = len(self.settings)
        differ = "no setting differs" if not count else f"{count} setting{'s'[: count > 1]} differ{'s'[: count == 1]}"
        return f"nearest of the runs here: {self.shared} of its {self.named} named artefacts are shared, {differ}"

    def made(self) -> set[tuple[str, str]]:
        """(task, key) of everything that the run was made of."""
        return reachable([self.run], self.run.store)[0]


def nearest_run(root: str, planned: Collection[tuple[str, str]], request: dict[str, Any]) -> Nearest | None:
    """The finished run that shares most artefacts with what is `planned`, (task, key) each; of several the one with
    the fewest settings that differ, and then the newest. None where no run has finished."""
    found = []
    wanted = {name: part for name, part in request.items() if name not in ASIDE}
    for run in reversed(list_runs(root)[-NEWEST:]):
        try:
            result = run.read_result()
        except (FileNotFoundError, BadInput):  # not ended, or no result of ours
            continue
        artifacts = result.get("artifacts")
        if not can_be_followed(artifacts):
            continue
        keys = [task_and_key(each["uri"]) for each in artifacts.values()]
        before = {name: part for name, part in (result.get("request") or {}).items() if name not in ASIDE}
        settings = tuple(each["setting"] for each in differing_settings(before, wanted))
        found.append(Nearest(run, sum(key in planned for key in keys), len(keys), settings))
    return max(found, key=lambda each: (each.shared, -len(each.settings)), default=None)  # the first: the newest


def differing_settings(a: Any, b: Any, path: str = "") -> list[dict[str, Any]]:
    """Every setting of two requests that differs, by its dotted name, with both values."""
    if a == b:
        return []
    if isinstance(a, dict) and isinstance(b, dict):
        names = dict.fromkeys([*a, *b])
        return [
            each
            for name in names
            for each in differing_settings(a.get(name), b.get(name), f"{path}.{name}" if path else name)
        ]
    return [{"setting": path, "a": a, "b": b}]
