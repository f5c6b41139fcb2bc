"""Places to test on: a folder, and a real HTTP S3 server, alone or behind a proxy that injects faults."""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from foretune.storage.artifacts import ArtifactStore
from tests.storage.lies import Answer, Lie


@pytest.fixture(autouse=True)
def cached_by_nobody(own_cache: Path) -> None:
    """Every test of this room has a cache of its own."""


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.slow)])
def root(request: pytest.FixtureRequest) -> str:
    """A storage root of each kind: what is asked of one is asked of the other."""
    return request.getfixturevalue(f"{request.param}_root")


How = str | Lie | Callable[[], None]


@dataclass
class Fault:
    """What the proxy does to the next `times` requests that `matches` picks."""

    how: How
    times: int
    matches: Callable[[str, str], bool]


@dataclass
class FaultyProxy:
    """Forwards to the S3 server, except where a fault is due. `requests` is every (method, path) it saw."""

    upstream: str
    endpoint: str = ""
    requests: list[tuple[str, str]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    answers: dict[tuple[str, str], Answer] = field(default_factory=dict)  # the first of each request
    lock: threading.Lock = field(default_factory=threading.Lock)

    def inject(self, how: How, times: int = 1, method: str = "", part: str = "") -> None:
        """`how`: an S3 error code, "reset", "hang", "late", "unheard", "truncate", an error in 200, a lie, or a call.

        "unheard" lets the server act and loses its answer; "truncate" sends half of the answer.
        """
        self.faults.append(Fault(how, times, lambda m, path: method in ("", m) and part in path))

    def due(self, method: str, path: str) -> How | None:
        with self.lock:
            self.requests.append((method, path))
            for fault in self.faults:
                if fault.times > 0 and fault.matches(method, path):
                    fault.times -= 1
                    return fault.how
        return None

    def count(self, method: str, part: str = "") -> int:
        return sum(1 for seen, path in self.requests if seen == method and part in path)


STATUS = {"InternalError": 500, "ServiceUnavailable": 503, "SlowDown": 503, "AccessDenied": 403, "NoSuchUpload": 404}


def _handler(proxy: FaultyProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def relay(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            how = proxy.due(self.command, self.path)
            if isinstance(how, Lie):
                return self.reply(*self.lied(how, body))
            if callable(how):
                how()
            elif how == "late":
                time.sleep(0.3)
            elif how == "reset":
                return self.reset()
            elif how == "hang":
                time.sleep(1.5)
                return self.reset()
            elif how == "error in 200":
                return self.reply(200, [], _error_xml("InternalError"))
            elif how in STATUS:
                return self.reply(STATUS[how], [], _error_xml(how))
            status, headers, answer = self.forward(body)
            proxy.answers.setdefault((self.command, self.path), Answer(status, headers, answer))
            if how == "unheard":
                return self.reset()
            if how == "truncate":
                self.reply(status, headers, answer, sent=len(answer) // 2)
                return self.reset()
            self.reply(status, headers, answer)

        def lied(self, lie: Lie, body: bytes) -> Answer:
            answer = Answer(*self.forward(body)) if lie.heard else Answer(200, [], b"")
            return lie.told(answer, proxy.answers.setdefault((self.command, self.path), answer))

        def forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            upstream = http.client.HTTPConnection(proxy.upstream.removeprefix("http://"))
            headers = {k: v for k, v in self.headers.items() if k.lower() not in ("connection", "expect")}
            upstream.request(self.command, self.path, body, headers)
            answer = upstream.getresponse()
            return answer.status, answer.getheaders(), answer.read()

        def reply(self, status: int, headers: list[tuple[str, str]], body: bytes, sent: int | None = None) -> None:
            # A HEAD announces the length of a body that it does not have.
            lengths = [value for name, value in headers if name.lower() == "content-length"]
            length = lengths[0] if self.command == "HEAD" and lengths else str(len(body))
            self.send_response(status)
            for name, value in headers:
                if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[:sent])

        def reset(self) -> None:
            self.wfile.flush()
            # With a linger of 0 s, close sends RST where it would send FIN.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()

        def log_message(self, *_: object) -> None:
            pass

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = relay

    return Handler


def _error_xml(code: str) -> bytes:
    return f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>injected</Message></Error>'.encode()


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Broken pipes are what this server is for."""


@pytest.fixture
def faulty_s3(s3_root: str, s3_environment: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """A proxy between `s3_root`'s client and its server; waits are shortened to match."""
    from foretune.storage import s3_faults

    proxy = FaultyProxy(upstream=s3_environment)
    server = _QuietServer(("127.0.0.1", 0), _handler(proxy))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    proxy.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    monkeypatch.setattr(s3_faults, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(s3_faults, "LONGEST_WAIT", 0.05)
    monkeypatch.setattr(s3_faults, "ATTEMPTS", 4)
    with contextlib.closing(server.socket):
        yield proxy
        server.shutdown()


@pytest.fixture
def store(root: str) -> ArtifactStore:
    return ArtifactStore(root)
