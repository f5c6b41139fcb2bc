"""What the engine adds to a pass: seconds per shard on each runner, and from a published event to its verdict.

`make bench-orchestration` writes results/orchestration.json. A shard here stores a few bytes, so that nearly all
of its time is overhead; what the same body takes without Prefect is subtracted. `start_seconds` is what a Ray
cluster takes until its workers are up. The event is vetted on the demo
by a server and a worker in processes of their own: once with nothing stored, once with every pass stored under
another gate.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect.testing.utilities import prefect_test_harness

from foretune.flows.environment import prepare
from tests.benchmarks.environment import RESULTS, write_results
from tests.benchmarks.mapped_shards import WORKERS, mapped, runner_row
from tests.deployments.team import PROJECT, Team, published, running_team

SHARDS = (8, 64, 256)


def runner_rows(folder: Path) -> list[dict[str, Any]]:
    """Mapped shards on threads of this process, and on a Ray cluster of two nodes with a worker each."""
    with prefect_test_harness(server_startup_timeout=180):
        mapped(str(folder / "warm-threads"), "threads", WORKERS)
        rows = [runner_row(folder, "threads", shards) for shards in SHARDS]
        with warm_cluster(folder) as started:
            return rows + [{**runner_row(folder, "ray", shards), "start_seconds": started} for shards in SHARDS]


@contextlib.contextmanager
def warm_cluster(folder: Path) -> Iterator[float]:
    """Joined and with its workers up; yields the seconds that this took."""
    import ray
    from ray.cluster_utils import Cluster

    started = time.perf_counter()
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(WORKERS - 1):
        nodes.add_node(num_cpus=1)
    ray.init(nodes.address, namespace="prefect", log_to_driver=False)
    mapped(str(folder / "warm-ray"), "ray", 4 * WORKERS)
    yield round(time.perf_counter() - started, 1)
    ray.shutdown()
    nodes.shutdown()


def event_rows(folder: Path) -> list[dict[str, Any]]:
    """Seconds from the event to the verdict in the ledger: a new dataset, and the same rows under another gate."""
    with running_team(folder) as team:
        computed = seconds_to_verdict(team, folder / "root", {"rules": []})
        stored = seconds_to_verdict(team, folder / "root", None)
    return [{"event_to_verdict_seconds": round(computed, 1), "with_every_pass_stored": round(stored, 1)}]


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


def stored_rows() -> list[dict[str, Any]]:
    """The rows of an earlier benchmark; none before the first."""
    path = RESULTS / "orchestration.json"
    return json.loads(path.read_text())["rows"] if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--part", choices=PARTS, help="measure one part, keep the stored rows of the other")
    part = parser.parse_args().part
    prepare(command_line=True)
    rows = []
    for name, (column, measure) in PARTS.items():
        if part in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                measured = measure(Path(folder))
            date = datetime.now(UTC).isoformat(timespec="seconds")
            rows += [{**row, "date": date} for row in measured]
        else:
            rows += [row for row in stored_rows() if column in row]
    write_results("orchestration", rows)


PARTS = {"runners": ("runner", runner_rows), "event": ("event_to_verdict_seconds", event_rows)}

if __name__ == "__main__":
    main()
