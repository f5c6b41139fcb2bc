"""What the engine adds to a pass: seconds per shard on each runner, and from a published event to its verdict.

`make bench-orchestration` writes results/orchestration.json. A shard here stores a few bytes, so that nearly all
of its time is overhead; what the same body takes without Prefect is subtracted. The event is vetted on the demo
by a server and a worker in processes of their own: once with nothing stored, once with every pass stored.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import prefect
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.testing.utilities import prefect_test_harness

from flows.environment import prepare
from storage.artifacts import ArtifactRef
from storage.runs import Run
from tasks.keys import content_task
from tests.benchmarks.environment import write_results
from tests.deployments.team import PROJECT, Team, published, running_team

SHARDS = (8, 64, 256)
WORKERS = 2


@content_task(version=1, libraries=())
def stored_number(draft: Any, run: Run, number: int) -> None:
    """The smallest pass: one file of a few bytes."""
    draft.write_json("number.json", number)


@prefect.flow(task_runner=ThreadPoolTaskRunner(max_workers=WORKERS))
def mapped(run: Run, shards: int) -> list[ArtifactRef]:
    """One task per shard."""
    return [future.result() for future in [stored_number.submit(run=run, number=n) for n in range(shards)]]


def runner_row(folder: Path, shards: int) -> dict[str, Any]:
    """Seconds of the mapped tasks on threads, cold and with every shard stored."""
    seconds = {}
    for state in ("computed", "stored"):
        started = time.perf_counter()
        mapped(Run(str(folder / f"mapped-{shards}"), "run"), shards)
        seconds[state] = time.perf_counter() - started
    started = time.perf_counter()
    for number in range(shards):
        stored_number.fn(run=Run(str(folder / f"plain-{shards}"), "run"), number=number)
    plain = time.perf_counter() - started
    return {
        "runner": "threads",
        "shards": shards,
        "seconds": round(seconds["computed"], 3),
        "seconds_per_shard": round(seconds["computed"] / shards, 5),
        "overhead_per_shard": round((seconds["computed"] - plain) / shards, 5),
        "seconds_stored": round(seconds["stored"], 3),
    }


def event_rows(folder: Path) -> list[dict[str, Any]]:
    """Seconds from the event to the verdict in the ledger: a new dataset, and the same rows under another gate."""
    with running_team(folder) as team:
        computed = seconds_to_verdict(team, folder / "root", {"rules": []})
        stored = seconds_to_verdict(team, folder / "root", None)
    return [
        {"event_to_verdict_seconds": round(computed, 1), "passes": "computed"},
        {"event_to_verdict_seconds": round(stored, 1), "passes": "stored"},
    ]


def seconds_to_verdict(team: Team, root: Path, gate: dict[str, Any] | None) -> float:
    """Publish the demo's dataset and wait for its vetting to end."""
    deployment = team.deployment("vet")
    request = {**deployment["parameters"]["request"], "runtime": {"root": str(root)}}
    team.patch(deployment, {"parameters": {"request": request, "gate": gate}})
    seen = {run["id"] for run in team.runs(deployment)}
    started = time.perf_counter()
    team.post("events", [published(str(PROJECT / "examples/demo/helpdesk.jsonl"))])

    def triggered() -> list[str]:
        return [r["id"] for r in team.runs(deployment) if r["id"] not in seen and r["parameters"].get("dataset")]

    ended = team.ended(team.until(triggered)[0], seconds=1200)
    if ended["state_name"] not in ("Accepted", "Refused"):
        raise RuntimeError(f"the vetting ended as {ended['state_name']}:\n{team.tail()}")
    return time.perf_counter() - started


def main() -> None:
    prepare(command_line=True)
    with tempfile.TemporaryDirectory() as folder:
        with prefect_test_harness(server_startup_timeout=180):
            mapped(Run(f"{folder}/warm", "run"), 2)
            rows = [runner_row(Path(folder), shards) for shards in SHARDS]
        rows += event_rows(Path(folder))
    write_results("orchestration", rows)


if __name__ == "__main__":
    main()
