"""What is paid where nothing is computed: a fully cached simulation, and a thousand cached shards, side by side with
Prefect flows of as many cached tasks that do nothing.

`make bench-overheads` writes results/overheads.json. `simulation` rows are whole commands, processes of their own with
a Prefect server of their own, taken in turns; `shards` rows are flows in one process on one server. A shard here
stores a few bytes. Requests to S3 are counted at its client; a bucket listing is one of more than an artefact's folder.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import prefect
from prefect.client.orchestration import get_client
from prefect.task_runners import ThreadPoolTaskRunner

from foretune.flows.engines.threads import steps_on
from foretune.flows.request import RuntimeSettings
from foretune.storage.runs import Run
from foretune.tasks.engine.passes import content_task
from tests.benchmarks import caching
from tests.benchmarks.environment import environment, with_earlier, write_results

SHARDS = 1000
WORKERS = 2
ROWS = 64
TURNS = 3


@content_task(version=1, libraries=())
def stored(draft: Any, run: Run, number: int) -> None:
    """A shard of a few bytes."""
    draft.write_json("number.json", number)


@prefect.task(cache_policy=prefect.cache_policies.INPUTS, persist_result=True, result_serializer="json")
def empty(number: int) -> int:
    """Prefect's own cached task that does nothing."""
    return number


@prefect.flow(log_prints=False)
def ours(root: str, count: int) -> list[bool]:
    """`count` shards through the steps of a simulation; whether each was stored already."""
    with steps_on(Run(root, "run"), RuntimeSettings(root=root, max_workers=WORKERS)) as step:
        for number in range(count):
            step(stored, number=number)
        step.finish()
        return [step.ready(artifact).cached for artifact in step.submitted]


@prefect.flow(log_prints=False)
def theirs(count: int) -> list[int]:
    """As many empty tasks."""
    with ThreadPoolTaskRunner(max_workers=WORKERS) as runner:
        futures = [runner.submit(empty, parameters={"number": number}) for number in range(count)]
        return [future.result() for future in futures]


def seconds_of(flow: Any, *arguments: Any) -> tuple[float, list[Any]]:
    """Seconds of a flow and what it returned, on a server that has nothing else to do."""
    settle()
    started = time.perf_counter()
    returned = flow(*arguments)
    return time.perf_counter() - started, returned


def settle(patience: float = 300.0) -> None:
    """Wait until the server has recorded what earlier flows told it: it is a minute behind after a thousand tasks."""
    deadline, known = time.monotonic() + patience, -1
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline:
            recorded = client.request("POST", "/task_runs/count", json={}).json()
            if recorded == known:
                return
            known = recorded
            time.sleep(5)
    raise SystemExit(f"the server still records task runs after {patience:.0f} s")


def shard_rows(count: int) -> list[dict[str, Any]]:
    """`count` cached shards on disk and on S3, and Prefect's own between them, on the server of this process."""
    rows = []
    theirs(count)
    for storage in ("disk", "s3"):
        with tempfile.TemporaryDirectory() as folder, caching.place(storage, Path(folder)) as root:
            ours(root, count)
            with requests_counted(storage) as seen:
                taken = [(seconds_of(ours, root, count), seconds_of(theirs, count)) for _ in range(TURNS)]
            cached = min(sum(mine) for (_, mine), _ in taken)
        requests = {name: round(number / (TURNS * count), 2) for name, number in seen.items()}
        compared = side_by_side([(mine, prefects) for (mine, _), (prefects, _) in taken])
        rows.append({"case": "shards", "storage": storage, "tasks_cached": cached, **compared, **requests})
        print(rows[-1], flush=True)
    return rows


def side_by_side(taken: list[tuple[float, float]]) -> dict[str, float]:
    """Medians of ours and Prefect's seconds, taken in turns, and their ratio."""
    mine, prefects = (statistics.median(column) for column in zip(*taken, strict=True))
    return {
        "seconds": round(mine, 2),
        "empty_flow_seconds": round(prefects, 2),
        "ratio": round(mine / prefects, 2),
    }


@contextmanager
def requests_counted(storage: str) -> Iterator[dict[str, int]]:
    """Requests that this process's S3 clients send, and how many of them list more than one artefact's folder."""
    seen: dict[str, int] = {}
    if storage != "s3":
        yield seen
        return
    import aiobotocore.client

    call = aiobotocore.client.AioBaseClient._make_api_call
    seen |= {"requests_per_task": 0, "bucket_listings_per_task": 0}

    async def counted(client: Any, operation: str, arguments: dict[str, Any]) -> Any:
        seen["requests_per_task"] += 1
        wide = operation.startswith("ListObjects") and arguments.get("Prefix", "").count("/") < 4
        seen["bucket_listings_per_task"] += wide
        return await call(client, operation, arguments)

    aiobotocore.client.AioBaseClient._make_api_call = counted
    try:
        yield seen
    finally:
        aiobotocore.client.AioBaseClient._make_api_call = call


FORETUNE = "from foretune.flows.cli import main; main()"

EMPTY = """
import sys
from foretune.flows.environment import prepare
prepare(command_line=True)
from tests.benchmarks.overheads import theirs
theirs(int(sys.argv[1]))
"""

CACHED = """
import json, sys
from foretune.flows.environment import prepare
prepare(command_line=True)
from foretune.flows.request import load_request
from foretune.flows.simulate import simulate
tasks = simulate(load_request(sys.argv[1]))["tasks"]
print(json.dumps([tasks, sorted({"torch", "transformers", "sae_lens"} & set(sys.modules))]))
"""


def simulation_row(model: str, sae: str | None, rows: int) -> dict[str, Any]:
    """A fully cached `foretune simulate`, and a flow of as many empty cached tasks, as commands in turns."""
    with tempfile.TemporaryDirectory() as name:
        request = str(caching.write_request(Path(name), str(Path(name) / "root"), rows, model, sae))
        words = [sys.executable, "-c", FORETUNE, "simulate", request]
        command(words)
        tasks, heavy = json.loads(command([sys.executable, "-c", CACHED, request])[1].splitlines()[-1])
        count = str(tasks["cached"])
        command([sys.executable, "-c", EMPTY, count])
        taken = [(command(words)[0], command([sys.executable, "-c", EMPTY, count])[0]) for _ in range(TURNS)]
    row = {"case": "simulation", "storage": "disk", "rows": rows, "tasks_cached": tasks["cached"]}
    row |= {"tasks_run": tasks["run"], **side_by_side(taken), "heavy_imports": heavy}
    print(row, flush=True)
    return row


def command(words: list[str]) -> tuple[float, str]:
    """Wall-clock seconds and stdout of a command that must succeed."""
    started = time.perf_counter()
    done = subprocess.run(words, cwd=caching.PROJECT, stdout=subprocess.PIPE, text=True, env=os.environ, check=True)
    return time.perf_counter() - started, done.stdout


def main() -> None:
    """Both cases."""
    from prefect.testing.utilities import prefect_test_harness

    from foretune.flows.environment import prepare

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=caching.MODEL)
    parser.add_argument("--sae", default=caching.SAE, help="folder; empty for none")
    parser.add_argument("--rows", type=int, default=ROWS, help="of the cached simulation")
    parser.add_argument("--case", nargs="+", default=["simulation", "shards"], choices=["simulation", "shards"])
    parser.add_argument("--shards", type=int, default=SHARDS)
    parser.add_argument("--name", default="overheads", help="of the file under results/")
    chosen = parser.parse_args()
    prepare(command_line=True)
    started = environment()
    rows = [simulation_row(chosen.model, chosen.sae or None, chosen.rows)] if "simulation" in chosen.case else []
    if "shards" in chosen.case:
        with prefect_test_harness(server_startup_timeout=180):
            rows += shard_rows(chosen.shards)
    print(write_results(chosen.name, with_earlier(chosen.name, rows, ("case", "storage")), started))


if __name__ == "__main__":
    main()
