"""A simulation on a Ray cluster of two nodes, one of whose workers is killed in the middle, beside one on threads."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from foretune.flows.engines.ray import OnRay
from foretune.flows.request import load_request
from foretune.flows.simulate import simulate
from foretune.storage.artifacts import ArtifactStore
from foretune.storage.errors import BadInput
from foretune.storage.events import read_events
from foretune.storage.runs import Run
from foretune.tasks.landscape.landscape import landscape_shard
from tests.lean import LEAN
from tests.orchestration.ray_passes import SHARDS, uses_on_ray

pytest.importorskip("prefect_ray", reason="Ray is not installed: pip install 'foretune[ray]'")
pytestmark = [pytest.mark.optional, pytest.mark.slow]

VICTIM = "landscape_shard"


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of two Ray nodes with a worker each."""
    from foretune.flows.environment import prepare

    prepare()
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.add_node(num_cpus=1)
    yield nodes.address
    nodes.shutdown()


def killed_within(task: str, drafts: Path, seconds: float = 120) -> threading.Thread:
    """Kills the first process that has begun to write an artefact of this task, once."""

    def watch() -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for draft in drafts.glob(f"{task}-*"):
                os.kill(int(draft.name.split("-")[-2]), signal.SIGKILL)
                return
            time.sleep(0.005)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def simulated(request: Path, run_id: str, *overrides: str) -> dict[str, Any]:
    return simulate(load_request(str(request), ["runtime.runner=ray", *LEAN, *overrides]), run_id=run_id)


@pytest.fixture(scope="module")
def on_ray(
    prefect_server: None,
    cluster: str,
    write_tiny_request: Callable[[Path], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, Any]]:
    """The request and the result of a simulation on Ray that lost a worker in the middle of a pass."""
    folder = tmp_path_factory.mktemp("on_ray")
    request = write_tiny_request(folder)
    killer = killed_within(VICTIM, folder / "root" / "artifacts" / ".drafts")
    result = simulated(request, "first", f"runtime.ray_address={cluster}")
    killer.join(0)
    assert not killer.is_alive(), "no worker was killed"
    return request, result


def keys(root: Path) -> set[tuple[str, str]]:
    return {(stored.task, stored.key) for stored in ArtifactStore(root).iterate() if stored.complete}


def test_a_killed_worker_costs_its_shard_and_nothing_else(on_ray):
    request, result = on_ray
    events = read_events(Run(str(request.parent / "root"), "first"))
    begun = Counter(event["key"] for event in events if event["type"] == "pass_started")
    ended = Counter(event["key"] for event in events if event["type"] == "pass_finished")
    twice = [key for key, times in begun.items() if times > 1]
    assert len(twice) == 1
    assert {event["task"] for event in events if event.get("key") in twice} == {VICTIM}
    assert set(ended.values()) == {1}
    assert begun.keys() == ended.keys()
    assert result["tasks"] == {"run": len(ended), "cached": 0}


def test_threads_store_the_same_artefacts_and_give_the_same_numbers(on_ray, write_tiny_request, tmp_path):
    request, result = on_ray
    again = simulated(write_tiny_request(tmp_path), "threads", "runtime.runner=threads")
    assert keys(tmp_path / "root") == keys(request.parent / "root")
    assert again["summary"] == result["summary"]
    assert again["signals"] == result["signals"]


def test_with_everything_stored_no_cluster_is_joined(on_ray):
    import ray

    request, result = on_ray
    again = simulated(request, "again", "runtime.ray_address=192.0.2.1:6379")  # nobody is there
    assert again["tasks"] == {"run": 0, "cached": result["tasks"]["run"]}
    assert again["summary"] == result["summary"]
    assert not ray.is_initialized()


def test_a_cluster_without_a_server_for_its_workers_is_bad_input(write_tiny_request, tmp_path):
    settings = load_request(str(write_tiny_request(tmp_path)), ["runtime.ray_address=192.0.2.1:6379"]).runtime
    with (
        temporary_settings({PREFECT_API_URL: None}),
        contextlib.ExitStack() as stack,
        pytest.raises(BadInput, match="set PREFECT_API_URL"),
    ):
        step = OnRay(Run(str(tmp_path / "root"), "none"), settings, stack)
        step(landscape_shard, model=None, rows=None)
        step.finish()


def test_a_model_is_opened_once_per_worker(prefect_server, cluster, tiny_llama, tmp_path):
    uses = uses_on_ray(str(tmp_path / "root"), str(tiny_llama), cluster)
    assert len(uses) == 2
    assert sum(len(counted) for counted in uses.values()) == SHARDS
    assert all(sorted(counted) == list(range(1, len(counted) + 1)) for counted in uses.values())
