"""One attempt written by hand, and the ways to make its command."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from tests.hostile.attempts import Case


class Written(NamedTuple):
    """One attempt."""

    prepare: Callable[[Case], list[str]]
    status: int
    said: str = ""
    own_root: bool = False
    process: bool = False
    environment: dict[str, str] = {}  # noqa: RUF012 - never changed


def plan(*options: str, **sections: Any) -> Callable[[Case], list[str]]:
    """`plan` with sections of the request changed."""

    def prepare(case: Case) -> list[str]:
        case.change(**sections)
        return ["plan", str(case.request), *options]

    return prepare


def setting(path: str, value: str) -> Callable[[Case], list[str]]:
    return plan("--set", f"{path}={value}")


def rows(data: str | bytes | list, name: str = "train.jsonl", **sections: Any) -> Callable[[Case], list[str]]:
    """`plan` over a dataset file of this content."""

    def prepare(case: Case) -> list[str]:
        content = "".join(json.dumps(row) + "\n" for row in data) if isinstance(data, list) else data
        file = case.folder / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode(errors="surrogatepass"))
        case.change(dataset={"path": str(file)}, **sections)
        return ["plan", str(case.request)]

    return prepare


def of_run(*words: str, spoil: Callable[[Case], Any] | None = None, output: str = "") -> Callable[[Case], list[str]]:
    """A command on the finished run, after its root was spoiled. OUT is a file of the case's own."""

    def prepare(case: Case) -> list[str]:
        if spoil:
            spoil(case)
        if output:
            case.output = case.folder / output
        here = [
            w.replace("OUT", str(case.folder / "out")).replace("ROWS", str(case.folder / "heldout.jsonl"))
            for w in words
        ]
        return [*here, "--root", str(case.root)]

    return prepare


def run_file(name: str, data: str | bytes | None) -> Callable[[Case], Any]:
    """A file of the run's folder holds this, or is a folder."""

    def spoil(case: Case) -> None:
        file = case.run / name
        file.unlink(missing_ok=True)
        if data is None:
            file.mkdir()
        else:
            file.write_bytes(data if isinstance(data, bytes) else data.encode())

    return spoil


def result_field(**changes: Any) -> Callable[[Case], Any]:
    def spoil(case: Case) -> None:
        file = case.run / "result.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return spoil


def gate(text: str | bytes) -> Callable[[Case], list[str]]:
    def prepare(case: Case) -> list[str]:
        file = case.folder / "gate.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return ["vet", str(case.request), "--gate", str(file), "--dataset", str(case.folder / "none.jsonl")]

    return prepare


def labels(name: str, data: str | bytes) -> Callable[[Case], list[str]]:
    def prepare(case: Case) -> list[str]:
        (case.folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
        case.change(sae={"path": str(case.sae), "labels": str(case.folder / name)})
        return ["plan", str(case.request)]

    return prepare


def words(*line: str) -> Callable[[Case], list[str]]:
    """A command line as it is; REQUEST, ROOT and OUT are places of the case."""

    def prepare(case: Case) -> list[str]:
        places = {"REQUEST": str(case.request), "ROOT": str(case.root), "OUT": str(case.folder / "out")}
        return [places.get(word, word) for word in line]

    return prepare


def template(text: str) -> Callable[[Case], list[str]]:
    def prepare(case: Case) -> list[str]:
        (case.model / "chat_template.jinja").write_text(text)
        case.rows.write_text(
            '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}\n'
        )
        return ["plan", str(case.request)]

    return prepare
