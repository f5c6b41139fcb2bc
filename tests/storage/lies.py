"""What an S3, or whatever stands between it and its client, may answer that is not so."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple


class Answer(NamedTuple):
    """A whole answer of HTTP."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


class Lie(NamedTuple):
    """How an answer is changed; `first` is what was answered when this was asked for the first time."""

    told: Callable[[Answer, Answer], Answer]
    heard: bool = True  # whether the server gets the request at all


def _with_header(answer: Answer, name: str, value: str) -> Answer:
    others = [(known, old) for known, old in answer.headers if known.lower() != name.lower()]
    return answer._replace(headers=[*others, (name, value)])


def _short(answer: Answer, _: Answer) -> Answer:
    return answer._replace(body=answer.body[: len(answer.body) // 2])


def _flipped(answer: Answer, _: Answer) -> Answer:
    middle = len(answer.body) // 2
    return answer._replace(body=answer.body[:middle] + b"\x7f" + answer.body[middle + 1 :])


def _page(answer: Answer, _: Answer) -> Answer:
    return Answer(200, [("Content-Type", "text/html")], b"<html><body>Please log in.</body></html>")


def _error(answer: Answer, _: Answer) -> Answer:
    return Answer(200, [], b'<?xml version="1.0"?><Error><Code>InternalError</Code></Error>')


def _lost(answer: Answer, _: Answer) -> Answer:
    return Answer(200, [("ETag", f'"{hashlib.md5(b"").hexdigest()}"')], b"")


LIES = {
    "short": Lie(_short),
    "flipped": Lie(_flipped),
    "empty": Lie(lambda answer, _: answer._replace(body=b"")),
    "page": Lie(_page),
    "error in 200": Lie(_error),
    "wrong ETag": Lie(lambda answer, _: _with_header(answer, "ETag", f'"{"0" * 32}"')),
    "no ETag": Lie(lambda answer, _: answer._replace(headers=[h for h in answer.headers if h[0].lower() != "etag"])),
    "wrong length": Lie(lambda answer, _: _with_header(answer, "Content-Length", "7")),
    "first version": Lie(lambda _, first: first),
    "lost": Lie(_lost, heard=False),
}
