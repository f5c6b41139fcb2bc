"""What is spared when little has changed: a simulation cold, and again after each of four changes.

`make bench-caching` writes results/caching.json: on disk and on an S3 server of its own, seconds of the whole
command, tasks, and bytes of the artefacts' files that were opened and stored. Every command is a process of its
own with an empty cache of downloads, as a nightly job on a fresh machine is. The request is a nightly user's, with
`prediction.along: latest`; the scenarios `own_path_*` leave that out.

Rows: the shortest questions of GSM8K, from FORETUNE_BENCH_DATA (a folder with gsm8k_test.jsonl).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks.environment import environment, with_earlier, write_results

PROJECT = Path(__file__).parents[2]
DATA = os.environ.get("FORETUNE_BENCH_DATA", "../shared/data")
MODEL = ".models/SmolLM2-135M-Instruct.Q4_1.gguf"
SAE = "examples/demo/sae"
HELD_OUT = 24  # rows


@dataclass
class Traffic:
    """Bytes of artefact files that a process opened (each once) and stored."""

    opened: dict[tuple[str, str], int] = field(default_factory=dict)
    written: int = 0

    @property
    def read(self) -> int:
        return sum(self.opened.values())


@contextlib.contextmanager
def traffic() -> Iterator[Traffic]:
    """Count every artefact file that is opened or stored inside the block."""
    from foretune.storage.contents import Artifact
    from foretune.storage.drafts import Draft

    counted, path, files = Traffic(), Artifact.path, Draft.files

    def opened(artifact: Artifact, name: str) -> Path:
        counted.opened[artifact.place.uri, name] = artifact.manifest.files[name].bytes
        return path(artifact, name)

    def stored(draft: Draft) -> dict[str, Any]:
        records = files(draft)
        counted.written += sum(record.bytes for record in records.values())
        return records

    Artifact.path, Draft.files = opened, stored
    try:
        yield counted
    finally:
        Artifact.path, Draft.files = path, files


def simulated(request: str, overrides: list[str]) -> dict[str, int]:
    """Run a request in this process; tasks and bytes."""
    from foretune.flows.environment import prepare

    prepare(command_line=True)
    from foretune.flows.request import load_request
    from foretune.flows.simulate import simulate

    with traffic() as counted:
        result = simulate(load_request(request, overrides))
    return {
        "tasks_run": result["tasks"]["run"],
        "tasks_cached": result["tasks"]["cached"],
        "bytes_read": counted.read,
        "bytes_written": counted.written,
    }


def in_a_process(request: Path, overrides: list[str]) -> dict[str, Any]:
    """`simulated` in a new process with an empty cache; its wall-clock seconds, start-up included, first."""
    words = [sys.executable, "-m", "tests.benchmarks.caching", "--one", str(request), *overrides]
    with tempfile.TemporaryDirectory() as cache:
        started = time.perf_counter()
        done = subprocess.run(
            words, cwd=PROJECT, stdout=subprocess.PIPE, text=True, env=os.environ | {"FORETUNE_CACHE": cache}
        )
        seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: exit status {done.returncode}")
    return {"seconds": round(seconds, 1), **json.loads(done.stdout.splitlines()[-1])}


def read_questions(count: int) -> list[dict[str, str]]:
    """The shortest rows of GSM8K as prompt and completion."""
    lines = (Path(DATA) / "gsm8k_test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = sorted(map(json.loads, lines), key=lambda row: (len(row["question"] + row["answer"]), row["question"]))
    return [{"prompt": row["question"], "completion": row["answer"]} for row in rows[:count]]


def write_request(folder: Path, root: str, rows: int, model: str, sae: str | None) -> Path:
    """request.yaml over `rows` training rows, with the files that the scenarios exchange."""
    questions = read_questions(rows + 2 * HELD_OUT)
    parts = {
        "train": questions[:rows],
        "dropped": questions[: rows // 2] + questions[rows // 2 + 3 : rows],
        "dropped_too": questions[: rows // 4] + questions[rows // 4 + 3 : rows],
        "heldout": questions[rows : rows + HELD_OUT],
        "other": questions[rows + HELD_OUT :],
    }
    for name, part in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    request = {
        "name": "caching",
        "dataset": {"path": str(folder / "train.jsonl"), "heldout": {"path": str(folder / "heldout.jsonl")}},
        "model": {"name_or_path": str(Path(model).absolute())},
        "sae": {"path": str(Path(sae).absolute())} if sae else None,
        "prediction": {"along": "latest"},
        "runtime": {"root": root},
    }
    path = folder / "request.yaml"
    path.write_text(yaml.safe_dump(request))
    return path


def scenarios(folder: Path) -> dict[str, list[str]]:
    """What changes between the cold run and each that follows, as overrides."""
    dropped, rate = f"dataset.path={folder / 'dropped.jsonl'}", "training.learning_rate=1e-4"
    return {
        "cold": [],
        "identical": [],
        "dropped3": [dropped],
        "learning_rate": [rate],
        "heldout": [f"dataset.heldout.path={folder / 'other.jsonl'}"],
        "own_path_dropped3": [f"dataset.path={folder / 'dropped_too.jsonl'}", "prediction.along=null"],
        "own_path_learning_rate": [rate, "prediction.along=null"],
    }


@contextlib.contextmanager
def place(storage: str, folder: Path) -> Iterator[str]:
    """A storage root: a folder, or a bucket of an S3 server that speaks HTTP on this machine."""
    if storage == "disk":
        yield str(folder / "root")
        return
    import boto3

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "benchmark",
        "AWS_SECRET_ACCESS_KEY": "benchmark",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        answering(port)
        boto3.client("s3").create_bucket(Bucket="caching")
        yield "s3://caching/root"
    finally:
        server.terminate()
        server.wait()


def answering(port: int, seconds: float = 60.0) -> None:
    """Wait until something listens on a port of this machine; ConnectionError when nothing does in time."""
    until = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if time.monotonic() > until:
            raise ConnectionError(f"nothing listens on port {port} after {seconds:.0f} s")
        time.sleep(0.2)


def measure(storage: str, rows: int, model: str, sae: str | None, wanted: list[str]) -> list[dict[str, Any]]:
    """One row per scenario on one kind of storage; `cold` is always among them."""
    measured = []
    with tempfile.TemporaryDirectory() as name, place(storage, Path(name)) as root:
        request = write_request(Path(name), root, rows, model, sae)
        for scenario, overrides in scenarios(Path(name)).items():
            if scenario not in ("cold", *wanted):
                continue
            row = {"scenario": scenario, "storage": storage, "rows": rows, **in_a_process(request, overrides)}
            print(row, flush=True)
            measured.append(row)
    return measured


def main() -> None:
    """All scenarios on every storage asked for."""
    parser = argparse.ArgumentParser(description="what is spared when little has changed")
    parser.add_argument("--one", nargs="+", help="a request and its overrides: run it here, print one JSON object")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--sae", default=SAE, help="folder; empty for none")
    parser.add_argument("--storage", nargs="+", default=["disk", "s3"], choices=["disk", "s3"])
    parser.add_argument("--scenarios", nargs="+", default=list(scenarios(Path())), choices=list(scenarios(Path())))
    parser.add_argument("--name", default="caching", help="of the file under results/")
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(simulated(chosen.one[0], chosen.one[1:])))
        return
    started = environment()
    settings = (chosen.rows, chosen.model, chosen.sae or None, chosen.scenarios)
    rows = [row for kind in chosen.storage for row in measure(kind, *settings)]
    print(write_results(chosen.name, with_earlier(chosen.name, rows, ("scenario", "storage", "rows")), started))


if __name__ == "__main__":
    main()
