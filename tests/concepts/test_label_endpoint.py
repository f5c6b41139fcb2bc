"""Names that an endpoint writes, asked for over HTTP: what is sent, what is kept, and what a failure leaves."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydantic import ValidationError

from foretune.tasks.concepts.detector import Detector
from foretune.tasks.concepts.evidence import Evidence
from foretune.tasks.concepts.label_endpoint import label_of, prompt_of, written_labels
from foretune.tasks.concepts.naming import asked_names, name_of
from foretune.tasks.inputs.concepts import LabelEndpoint, NamingSettings
from tests.concepts.test_naming import RARE, ROUTER, detector, evidence  # noqa: F401 - fixtures

KEY = "made-up-key-0123456789"


class Endpoint(ThreadingHTTPServer):
    """Answers with its replies, one after the other, the last for good; keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.replies: list[tuple[int, bytes]] = []
        self.asked: list[tuple[str, Any, dict[str, Any]]] = []


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, self.headers.get("Authorization"), body))
        status, reply = self.server.replies.pop(0) if len(self.server.replies) > 1 else self.server.replies[0]
        self.send_response(status)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Endpoint]:
    with Endpoint() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def said(label: str) -> tuple[int, bytes]:
    return 200, json.dumps({"choices": [{"message": {"content": label}}]}).encode()


def settings_for(server: Endpoint, **more: Any) -> NamingSettings:
    return NamingSettings(endpoint=LabelEndpoint(url=f"http://127.0.0.1:{server.server_port}/v1/", model="m", **more))


MOVED = [
    {"feature": RARE, "change": 9.0, "beyond_noise": False},
    {"feature": ROUTER, "change": 1.0, "beyond_noise": True},
]


def asked(server: Endpoint, evidence: Evidence, detector: Detector, **more: Any) -> tuple[Any, dict[str, Any]]:  # noqa: F811
    settings = settings_for(server, **more)
    named = [name_of(n, None, None, evidence, detector, settings) for n in (ROUTER, RARE)]
    told = asked_names(named, MOVED, {ROUTER: "cable"}, evidence, detector, settings)
    return named, told


def test_what_moved_is_named_by_the_endpoint_and_tested(server, evidence, detector, monkeypatch):  # noqa: F811
    monkeypatch.setenv("MY_KEY", KEY)
    server.replies = [said('Name: "the customer router today now please restart it"\nBecause')]
    named, told = asked(server, evidence, detector, key_variable="MY_KEY")
    assert (named[ROUTER].label, named[ROUTER].source) == ("the customer router today now please", "endpoint m")
    assert named[ROUTER].confidence > 0.7 and named[RARE].source is None
    assert told == {"model": "m", "asked": 1, "labels": 1, "fault": None}
    ((path, key, body),) = server.asked
    assert (path, key, body["model"]) == ("/v1/chat/completions", f"Bearer {KEY}", "m")
    prompt = body["messages"][1]["content"]
    assert prompt.count("<<") == 10 and all("<< router>>" in line for line in prompt.splitlines()[:10])
    assert prompt.endswith("cable") and KEY not in json.dumps(body)
    contexts = evidence.contexts(ROUTER, 20)
    tested = {evidence.marked(int(token), 24, 8) for token in contexts.tested}
    assert tested.isdisjoint(prompt.splitlines())


def test_a_label_that_its_test_refutes_gives_way_to_a_name_that_holds(server, evidence, detector):  # noqa: F811
    server.replies = [said("invoice call")]
    named, told = asked(server, evidence, detector)
    assert named[ROUTER].label == "the word router" and told["labels"] == 1


@pytest.mark.parametrize(
    ("replies", "times", "fault"),
    [
        ([(503, b""), (503, b"")], 2, "status 503"),
        ([(401, b"no")], 1, "status 401"),
        ([(302, b"")], 1, "status 302"),
        ([(200, b"<html>")], 1, "none of a chat"),
        ([(200, b"1" * (1 << 20) + b"1")], 1, "more than 1,048,576 bytes"),
    ],
)
def test_a_failure_is_one_line_and_names_from_evidence_stay(
    server, evidence, detector, caplog, replies, times, fault  # noqa: F811
):  # fmt: skip
    server.replies = replies
    with caplog.at_level(logging.WARNING, "foretune"):
        named, told = asked(server, evidence, detector, attempts=2)
    assert named[ROUTER].label == "the word router" and fault in told["fault"] and len(server.asked) == times
    assert "\n" not in caplog.text.strip() and "names from evidence stay" in caplog.text


def test_busy_is_asked_again_and_silence_and_a_missing_key_are_said(server, evidence, detector, monkeypatch):  # noqa: F811
    server.replies = [(429, b""), said("home router")]
    named, told = asked(server, evidence, detector)
    assert named[ROUTER].label == "home router" and told["fault"] is None
    monkeypatch.delenv("MY_KEY", raising=False)
    assert "MY_KEY is not set" in asked(server, evidence, detector, key_variable="MY_KEY")[1]["fault"]
    gone = LabelEndpoint(url="http://127.0.0.1:1", model="m", attempts=1)
    assert "ConnectError" in written_labels(gone, [(0, "x")]).fault


def test_secrets_are_not_sent_and_answers_are_cut():
    class Leaking(Evidence):
        def __init__(self) -> None: ...

        def marked(self, token: int, left: int, right: int) -> str:
            return "use sk-abcdefghij0123456789xyz now"

    class Shown:
        shown = (0,)

    assert prompt_of(Leaking(), Shown(), None) == "use *** now"  # pyright: ignore[reportArgumentType]
    assert label_of("<think>hm, a b c</think>\n**Refund requests.**") == "Refund requests"
    assert label_of("a\x1b[31m b c d e f g h") == "a\\x1b[31m b c d e f" or "\x1b" not in str(label_of("a\x1b[31m b"))
    assert [label_of(text) for text in ("", "router", "<think>never ends", "... !!")] == [None] * 4


def test_an_address_with_credentials_is_refused():
    for url in ("http://me:secret@host/v1", "ftp://host", "http://", "http://host/v1?key=1"):
        with pytest.raises(ValidationError):
            LabelEndpoint(url=url, model="m")
    assert NamingSettings().endpoint is None
