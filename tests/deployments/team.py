"""A Prefect server and a process worker as a team runs them: processes of their own, prefect.yaml deployed."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil

from tests.deployments.ports import free_port

PROJECT = Path(__file__).parents[2]
PREFECT = [sys.executable, "-m", "prefect", "--no-prompt"]
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


@dataclass
class Team:
    """The server's REST interface, and the worker beside it."""

    environment: dict[str, str]
    log: Path
    processes: list[subprocess.Popen] = field(default_factory=list)
    worker: subprocess.Popen | None = None
    csrf: dict[str, str] = field(default_factory=dict)

    @property
    def auth(self) -> tuple[str, str]:
        """What the server asks for, as HTTP's basic authentication."""
        user, _, password = self.environment["PREFECT_API_AUTH_STRING"].partition(":")
        return user, password

    @property
    def api(self) -> str:
        return self.environment["PREFECT_API_URL"]

    def start(self, *words: str) -> subprocess.Popen:
        with open(self.log, "ab") as log:
            started = subprocess.Popen(
                [*PREFECT, *words],
                env=self.environment,
                cwd=PROJECT,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(started)
        return started

    def command(self, *words: str) -> None:
        done = subprocess.run(
            [*PREFECT, *words], env=self.environment, cwd=PROJECT, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"prefect {' '.join(words)}: {(done.stdout + done.stderr)[-2000:]}\n{self.tail()}")

    def start_worker(self) -> None:
        self.worker = self.start("worker", "start", "--pool", "foretune", "--name", f"worker-{len(self.processes)}")

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The answer's JSON; 503 means that SQLite was locked, and to ask again."""
        for pause in (0.5, 1.0, 2.0, 4.0, 0.0):
            answer = httpx.request(
                method, f"{self.api}/{path}", json=body, headers=self.csrf, auth=self.auth, timeout=30
            )
            if answer.status_code != 503:
                break
            time.sleep(pause)
        return answer.raise_for_status().json() if answer.content or answer.is_error else None

    def get(self, path: str) -> Any:
        return self.ask("GET", path)

    def post(self, path: str, body: Any) -> Any:
        return self.ask("POST", path, body)

    def patch(self, deployment: dict[str, Any], changes: dict[str, Any]) -> None:
        self.ask("PATCH", f"deployments/{deployment['id']}", changes)

    def deployment(self, name: str) -> dict[str, Any]:
        return self.get(f"deployments/name/foretune-{name}/{name}")

    def runs(self, deployment: dict[str, Any], states: list[str] | None = None) -> list[dict[str, Any]]:
        wanted = {"state": {"type": {"any_": states}}} if states else {}
        return self.post("flow_runs/filter", {"flow_runs": {"deployment_id": {"any_": [deployment["id"]]}, **wanted}})

    def run(self, deployment: dict[str, Any], environment: dict[str, str] | None = None, **parameters: Any) -> str:
        """Start a run, as any HTTP client would, with these variables in its process; its id."""
        body = {"parameters": parameters, "job_variables": {"env": environment} if environment else {}}
        return self.post(f"deployments/{deployment['id']}/create_flow_run", body)["id"]

    def events(self, run_id: str, name: str) -> list[dict[str, Any]]:
        """The events of a run whose name begins so, in order."""
        wanted = {
            "event": {"prefix": [name]},
            "related": {"id": [f"prefect.flow-run.{run_id}"]},
            "order": "ASC",
        }
        page = self.post("events/filter", {"filter": wanted, "limit": 50})
        found = page["events"]
        while page.get("next_page"):
            page = httpx.get(page["next_page"], auth=self.auth, timeout=30).raise_for_status().json()
            found += page["events"]
        return found

    def logs(self, run_id: str, level: int) -> list[str]:
        """What the run logged at this level and above."""
        wanted = {"flow_run_id": {"any_": [run_id]}, "level": {"ge_": level}}
        return [line["message"] for line in self.post("logs/filter", {"logs": wanted})]

    def artifacts(self, run_id: str) -> dict[str, Any]:
        """The run's artifacts: key -> content."""
        found = self.post("artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run_id]}}})
        return {artifact["key"]: artifact["data"] for artifact in found}

    def ended(self, run_id: str, seconds: float = 300) -> dict[str, Any]:
        """The run in its last state."""
        return self.until(lambda: (run := self.get(f"flow_runs/{run_id}"))["state_type"] in ENDED and run, seconds)

    def until(self, look: Callable[[], Any], seconds: float = 300) -> Any:
        """What `look` sees as soon as it sees something."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            seen = look()
            if seen:
                return seen
            time.sleep(0.3)
        raise TimeoutError(f"nothing seen within {seconds} s; the server's and the worker's last lines:\n{self.tail()}")

    def tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])

    def ask_for_token(self) -> None:
        """The token that every changing request must carry."""
        given = self.get("csrf-token?client=tests")
        self.csrf = {"Prefect-Csrf-Client": given["client"], "Prefect-Csrf-Token": given["token"]}

    def healthy(self) -> bool:
        try:
            return httpx.get(f"{self.api}/health", timeout=5).is_success
        except httpx.TransportError:
            return False


def end(process: subprocess.Popen) -> None:
    """Kill the process and all that it started: a worker puts every run into a session of its own."""
    with suppress(psutil.NoSuchProcess):
        for started in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                started.kill()
    process.kill()
    process.wait()


@contextmanager
def running_team(folder: Path, **settings: str) -> Iterator[Team]:
    """Server and worker with all their files below `folder`; both are killed at the end."""
    port, authentication = free_port(), f"team:{secrets.token_hex(16)}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")} | {
        "PREFECT_HOME": str(folder / "home"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_API_AUTH_STRING": authentication,
        "PREFECT_SERVER_API_AUTH_STRING": authentication,
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://127.0.0.1:{port}",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        **settings,
    }
    team = Team(environment, folder / "log.txt")
    try:
        team.start("server", "start", "--host", "127.0.0.1", "--port", str(port))
        team.until(team.healthy, 600)  # a busy machine
        team.ask_for_token()
        template = str(PROJECT / "deployments" / "pools" / "process.json")
        team.command(
            *("work-pool", "create", "foretune", "--type", "process", "--overwrite", "--base-job-template", template)
        )
        team.command("deploy", "--name", "simulate", "--name", "vet", "--name", "backtest", "--name", "compare")
        team.start_worker()
        yield team
    finally:
        for process in team.processes:
            end(process)


def published(uri: str | None, dataset: str = "helpdesk") -> dict[str, Any]:
    """The event that a data pipeline emits, as it travels; with None it forgot the place."""
    return {
        "event": "dataset.published",
        "id": str(uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "resource": {"prefect.resource.id": f"dataset.{dataset}"},
        "payload": {"uri": uri} if uri else {},
    }
