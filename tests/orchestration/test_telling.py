"""What a run tells a Prefect server: its name, its progress and where its report is; and a server that is gone at the
end fails no finished run."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from foretune.storage.runs import Run, list_runs
from foretune.tasks.report.address import report_address, report_link
from tests.deployments.ports import free_port
from tests.deployments.team import end

pytestmark = pytest.mark.slow

HOP = ("host", "connection", "transfer-encoding", "content-length")


class Server:
    """A Prefect server in a process of its own, and before it a proxy that can answer 500 or not at all."""

    def __init__(self, folder: Path) -> None:
        self.port, self.door = free_port(), free_port()
        self.failing: str | None = None  # what a path holds that is answered with 500 from now on
        self.asked: list[str] = []
        self.environment = {n: v for n, v in os.environ.items() if not n.startswith("PREFECT_")} | {
            "PREFECT_HOME": str(folder / "home"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_API_URL": f"http://127.0.0.1:{self.door}/api",
        }
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        with open(folder / "server.txt", "wb") as log:
            self.process = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.proxy = ThreadingHTTPServer(("127.0.0.1", self.door), handler_of(self))
        threading.Thread(target=self.proxy.serve_forever, daemon=True).start()

    def ask(self, path: str, body: Any) -> Any:
        return httpx.post(f"http://127.0.0.1:{self.port}/api/{path}", json=body, timeout=30).raise_for_status().json()

    def healthy(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/api/health", timeout=5).is_success
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        end(self.process)


def handler_of(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def forward(self) -> None:
            if "upgrade" in self.headers:
                return self.tunnel()
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            server.asked.append(f"{self.command} {self.path}")
            if server.failing and server.failing in self.path:
                return self.answer(500, {}, b'{"detail": "a hiccup"}')
            kept = {name: value for name, value in self.headers.items() if name.lower() not in HOP}
            there = HTTPConnection("127.0.0.1", server.port, timeout=60)
            try:
                there.request(self.command, self.path, body, kept)
                answer = there.getresponse()
                content = answer.read()
            except OSError:
                self.close_connection = True
                return None
            finally:
                there.close()
            self.answer(answer.status, dict(answer.getheaders()), content)

        def tunnel(self) -> None:
            """A WebSocket: bytes both ways until one side has ended."""
            self.close_connection = True
            with suppress(OSError), socket.create_connection(("127.0.0.1", server.port)) as there:
                there.sendall(f"{self.requestline}\r\n{self.headers}".encode())
                sides = {there: self.connection, self.connection: there}
                while True:
                    for side in select.select(list(sides), [], [])[0]:
                        received = side.recv(65536)
                        if not received:
                            return
                        sides[side].sendall(received)

        def answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() not in HOP:
                    self.send_header(name, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = forward

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with started_server(folder) as started:
        deadline = time.monotonic() + 300
        while not started.healthy():
            assert time.monotonic() < deadline, (folder / "server.txt").read_text()[-2000:]
            time.sleep(0.5)
        yield started


@pytest.fixture(autouse=True)
def answering(server: Server) -> None:
    server.failing = None


@contextmanager
def started_server(folder: Path) -> Iterator[Server]:
    started = Server(folder)
    try:
        yield started
    finally:
        started.proxy.shutdown()
        started.proxy.server_close()
        started.kill()


FLOW = """
import os, sys
from foretune.flows.environment import prepare
prepare(command_line=True)
from foretune.flows.commands.terminal import Terminal
from foretune.tasks.report import publish as module
published = module.publish_markdown
def meanwhile(*words):
    print("AT THE END", flush=True)
    sys.stdin.readline()
    published(*words)
module.publish_markdown = meanwhile
from foretune.flows.command import main
sys.argv = ["foretune", "simulate", sys.argv[1], "--json", "--quiet"]
main()
"""
"""The command, which waits before it tells the server of its verdict until somebody answers."""


def simulated(server: Server, request: Path, meanwhile: Any = None, **environment: str) -> tuple[int, str, str]:
    process = subprocess.Popen(
        [sys.executable, "-c", FLOW, str(request)],
        env={**server.environment, "PREFECT_CLIENT_RETRY_JITTER_FACTOR": "0", **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin and process.stdout
    for line in process.stdout:
        if "AT THE END" in line:
            break
    if meanwhile:
        meanwhile()
    out, err = process.communicate("go on\n", timeout=300)
    return process.returncode, out, err


def newest(server: Server) -> dict[str, Any]:
    return server.ask("flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})[0]


def artifacts_of(server: Server, run: dict[str, Any]) -> dict[str, Any]:
    found = server.ask("artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run["id"]]}}})
    return {each["key"]: each for each in found}


def root_of(request: Path) -> str:
    return str(request.parent / "root")


def test_a_finished_run_names_itself_its_progress_and_its_report(server: Server, warm_request: Path):
    status, out, err = simulated(server, warm_request, FORETUNE_REPORT_URL="https://reports.example/{run_id}/page.html")
    assert status == 0, err
    result = json.loads(out)
    run = newest(server)
    assert run["name"] == result["run_id"]
    address = f"https://reports.example/{result['run_id']}/page.html"
    assert run["state"]["message"] == f"Should I train? {result['summary']['answer']}. Report: {address}"
    artifacts = artifacts_of(server, run)
    assert f"[Report]({address})" in artifacts["foretune-verdict"]["data"]
    stored = result["tasks"]["cached"]
    assert result["tasks"]["run"] == 0
    assert set(artifacts) == {"foretune-progress-run", "foretune-verdict"}, "what is stored has no bar"
    assert artifacts["foretune-progress-run"]["description"] == f"run: 0 of 0 tasks computed, {stored} more were stored"
    assert artifacts["foretune-progress-run"]["data"] == 100


def test_a_server_that_answers_500_for_a_while_is_told_again(server: Server, warm_request: Path):
    def hiccup() -> None:
        server.failing = "/api/"
        threading.Timer(4, lambda: setattr(server, "failing", None)).start()

    status, _, err = simulated(server, warm_request, hiccup)
    assert status == 0 and "was not told" not in err, err
    run = newest(server)
    assert run["state_type"] == "COMPLETED"
    assert "foretune-verdict" in artifacts_of(server, run)


def test_a_server_that_takes_no_artifact_fails_no_run_and_it_is_said_in_a_line(server: Server, warm_request: Path):
    status, out, err = simulated(
        server, warm_request, lambda: setattr(server, "failing", "/artifacts"), PREFECT_CLIENT_MAX_RETRIES="0"
    )
    assert status == 0, err
    [told] = [line for line in err.splitlines() if "was not told" in line]
    assert json.loads(out)["run_id"] in told and "artifact foretune-verdict" in told and "500" in told
    assert newest(server)["state_type"] == "COMPLETED"


def test_where_a_report_is_read(monkeypatch: pytest.MonkeyPatch):
    run = Run("s3://bucket/root", "20261129-101010-tickets-1a2b")
    monkeypatch.delenv("FORETUNE_REPORT_URL", raising=False)
    file = "s3://bucket/root/runs/20261129-101010-tickets-1a2b/report.html"
    assert (report_address(run), report_link(run)) == (file, f"Report: `{file}`")
    monkeypatch.setenv("FORETUNE_REPORT_URL", "https://reports.example/runs/")
    assert report_address(run) == "https://reports.example/runs/20261129-101010-tickets-1a2b/report.html"
    monkeypatch.setenv("FORETUNE_REPORT_URL", "https://user:secret@reports.example/{run_id}")
    assert "secret" not in report_link(run)


def test_a_server_that_is_killed_at_the_end_fails_no_finished_run(server: Server, warm_request: Path):
    status, out, err = simulated(server, warm_request, server.kill, PREFECT_CLIENT_MAX_RETRIES="1")
    assert status == 0, err
    [run] = [each for each in list_runs(root_of(warm_request)) if (each.place / "result.json").exists()][-1:]
    assert json.loads(out)["run_id"] == run.run_id == run.read_result()["run_id"]
    told = [line for line in err.splitlines() if "was not told" in line]
    assert len(told) == 2 and "artifact foretune-verdict" in told[0] and "the run ended" in told[1], err
    assert "Traceback" not in err
