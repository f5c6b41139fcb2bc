"""Garbage collection: artefacts that no kept run refers to, directly or through its artefacts' inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from foretune.flows.commands.terminal import Terminal
from foretune.storage.artifacts import ArtifactStore, Stored
from foretune.storage.cache import sweep_cache
from foretune.storage.errors import BadInput
from foretune.storage.events import read_events
from foretune.storage.ledger import accepted_runs
from foretune.storage.manifest import artefacts_in
from foretune.storage.ownership import can_be_followed, delete_run, is_root, last_written, state_of
from foretune.storage.places import Place
from foretune.storage.results import task_and_key
from foretune.storage.roots import root_to_write
from foretune.storage.runs import Run, list_runs

GRACE_SECONDS = 3600.0
"""An artefact this young may belong to a run that has not written its result yet; a run this young may still be
compared and accepted."""
DRAFT_SECONDS = 86400.0
"""What a killed writer left; a pass may compute for hours before it writes again."""
COPY_DAYS = 30.0
"""A download that nothing has read for this long; it is fetched again when it is needed after all."""


@dataclass
class Garbage:
    """What a collection takes, and why it leaves what one might expect it to take."""

    kept: list[Run]
    runs: list[Run] = field(default_factory=list)
    artifacts: list[Stored] = field(default_factory=list)
    spared: list[str] = field(default_factory=list)  # a line each
    certain: bool = True  # it is known what every run refers to


def find_garbage(root: str, last: int | None, days: float | None, now: datetime) -> Garbage:
    """Runs that are not kept and artefacts that only they needed. BadInput where `root` is no storage root.

    Nothing of a run that is going or unreadable is taken, and no artefact while there is one: what it refers to is
    not known. Folders of others are neither taken nor kept.
    """
    if not is_root(root):
        raise BadInput(
            f"{Place(root).uri}: not a storage root of foretune (no foretune.json, no run, no artefact of its own); "
            "give the --root that simulations wrote to"
        )
    states = {run: state_of(run) for run in list_runs(root)}
    states = {run: state for run, state in states.items() if state != "foreign"}
    wanted = kept_runs(root, list(states), last, days, now)
    found = Garbage(kept=[])
    for run, state in states.items():
        doomed = run not in wanted and state in ("ended", "given up")
        young = doomed and now.timestamp() - last_written(run) < GRACE_SECONDS
        if young:
            found.spared.append(f"run {run.run_id} is younger than an hour: kept")
        (found.runs if doomed and not young else found.kept).append(run)
        _say_uncertain(found, run, state)
    store = ArtifactStore(root)
    reached, lost = reachable(found.kept, store)
    for task, key in lost:
        found.spared.append(f"{task}/{key[:12]} of a kept run has no readable manifest: no artefact is deleted")
    found.certain = found.certain and not lost
    young_from = now.timestamp() - GRACE_SECONDS
    loose = [s for s in store.iterate() if (s.task, s.key) not in reached and s.modified < young_from]
    foreign = [stored for stored in loose if not store.own_files(stored.task, stored.key)]
    if foreign:
        first = f"{foreign[0].task}/{foreign[0].key}"
        found.spared.append(f"{len(foreign)} folders of artifacts/ have no manifest of foretune: left, first {first}")
    if found.certain:
        found.artifacts = [stored for stored in loose if stored not in foreign]
    return found


def _say_uncertain(found: Garbage, run: Run, state: str) -> None:
    """A run of which is not known what it refers to holds every artefact."""
    reasons = {
        "going": "is going, or was killed within a day",
        "unreadable": "has an unreadable result.json (delete the folder by hand, or restore the file)",
    }
    if state in reasons:
        found.certain = False
        found.spared.append(f"run {run.run_id} {reasons[state]}: it is kept and no artefact is deleted")


def kept_runs(root: str, runs: list[Run], last: int | None, days: float | None, now: datetime) -> set[Run]:
    """The runs to keep: the newest `last`, those of the past `days`, and accepted ones; all when neither is given."""
    if last is None and days is None:
        return set(runs)
    newest = {run.run_id for run in runs[-last:]} if last else set()
    newest |= accepted_runs(root)
    oldest = f"{now - timedelta(days=min(days, 36500)):%Y%m%d-%H%M%S}" if days is not None else "9"
    return {run for run in runs if run.run_id in newest or run.run_id >= oldest}


def reachable(runs: list[Run], store: ArtifactStore) -> tuple[set[tuple[str, str]], list[tuple[str, str]]]:
    """(task, key) of every artefact that the runs name, and of all that went into those; and those of them whose
    manifest cannot be read, so that what went into them is not known.

    A run names artefacts in its result, one that failed or was stopped in its events: the same request goes on there.
    """
    waiting: list[tuple[str, str]] = []
    for run in runs:
        try:
            named = run.read_result().get("artifacts")
        except (FileNotFoundError, BadInput):
            named = None
        if can_be_followed(named):
            waiting += [task_and_key(stored["uri"]) for stored in named.values()]
        else:
            events = [event for event in read_events(run) if event.get("type") == "pass_finished"]
            made = [(event["task"], event["key"]) for event in events if event.get("key")]
            waiting += [each for each in made if store.manifest(*each) is not None]  # it may have been damaged since
    seen: set[tuple[str, str]] = set()
    lost: list[tuple[str, str]] = []
    while waiting:
        found = waiting.pop()
        if found in seen:
            continue
        seen.add(found)
        manifest = store.manifest(*found)
        if manifest is not None:
            waiting += artefacts_in(manifest.inputs)
        else:
            lost.append(found)
    return seen, lost


def collect_garbage(
    root: str,
    last: int | None,
    days: float | None,
    delete: bool,
    before: Callable[[dict[str, Any]], None] = lambda described: None,
    counted: Callable[[str, int, int, str], None] = lambda what, done, total, unit: None,
) -> dict[str, Any]:
    """What would go, or went: runs that are not kept, artefacts that only they needed, and this machine's old
    downloads (`cache_bytes`, counted when they go). `before` is told what is about to go, `counted` how much of it
    went."""
    found = find_garbage(root, last, days, datetime.now(UTC))
    described: dict[str, Any] = {
        "root": root,
        "deleted": delete,
        "runs": [run.run_id for run in found.runs],
        "artifacts": [{"task": s.task, "key": s.key, "bytes": s.bytes} for s in found.artifacts],
        "bytes": sum(stored.bytes for stored in found.artifacts),
        "cache_bytes": 0,
        "kept_runs": len(found.kept),
        "spared": found.spared,
    }
    before(described)
    return described | _deleted(root, found, counted) if delete else described


def _deleted(root: str, found: Garbage, counted: Callable[[str, int, int, str], None]) -> dict[str, Any]:
    """Delete; what went, where it is not all that was found."""
    root_to_write(root)
    store = ArtifactStore(root)
    known = set(list_runs(root))
    for run in found.runs:
        delete_run(run)
    gone: list[Stored] = []
    for stored in found.artifacts:
        if set(list_runs(root)) - known:
            found.spared.append("a run has begun meanwhile: the other artefacts are left for the next time")
            break
        store.delete(stored.task, stored.key)
        gone.append(stored)
        counted("deleting", len(gone), len(found.artifacts), "artefacts")
    if found.certain:
        store.sweep(older_than=DRAFT_SECONDS)
    return {
        "artifacts": [{"task": s.task, "key": s.key, "bytes": s.bytes} for s in gone],
        "bytes": sum(stored.bytes for stored in gone),
        "cache_bytes": sweep_cache(older_than=COPY_DAYS * 86400),
        "spared": found.spared,
    }


def print_garbage(terminal: Terminal, described: dict[str, Any]) -> None:
    """What is about to go, or would, a line per run and per task; and what is spared, with the reason."""
    verb = "deletes" if described["deleted"] else "would delete"
    lines = [f"run {run_id}" for run_id in described["runs"]]
    lines += [
        f"{number} x {task}" for task, number in sorted(Counter(a["task"] for a in described["artifacts"]).items())
    ]
    for line in lines:
        terminal.say(f"  {verb} {line}", whole=True)
    for line in described["spared"]:
        terminal.say(f"  spared: {line}", whole=True)


def print_total(terminal: Terminal, found: dict[str, Any]) -> None:
    """What went, or would, in one line."""
    verb = "deleted" if found["deleted"] else "would be deleted (add --delete)"
    terminal.say(
        f"{len(found['runs'])} runs and {len(found['artifacts'])} artefacts, {found['bytes'] / 1e6:,.1f} MB, {verb}; "
        f"{found['kept_runs']} runs kept"
    )
