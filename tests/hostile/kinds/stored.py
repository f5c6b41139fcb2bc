"""What a run has stored, damaged; then what reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from tests.hostile.attempts import Case
from tests.hostile.kinds.attempt import Attempt, dumped, in_words, put, yaml_text
from tests.hostile.values import (
    damaged_bytes,
    leaves,
    values,
)

READERS = [["watch"], ["report"], ["lineage"], ["compare", "latest"], ["runs"], ["gc"], ["gc", "--keep-last", "0"],
           ["gc", "--keep-last", "0", "--delete"], ["clean", "-o", "out.jsonl", "--force"], ["export", "exported"],
           ["whatif", "--set", "training.epochs=1,3"]]  # fmt: skip


def read_by(words: list[str], case: Case) -> list[str]:
    command, *rest = words
    if command == "clean":
        case.output = case.folder / "out.jsonl"
    if command == "export":
        case.output = case.folder / "exported"
    named = [] if command in ("runs", "gc") else ["latest"]
    return [command, *named, *rest, "--root", str(case.root), *(["--quiet"] if command == "watch" else [])]


@st.composite
def stored_files(draw: Any) -> Attempt:
    """result.json, request.yaml, events.jsonl, manifests and the marker of a root, damaged; then what reads them."""
    name = draw(
        st.sampled_from(
            [
                "result.json",
                "result.json",
                "request.yaml",
                "events.jsonl",
                "report.html",
                "manifest",
                "manifest",
                "data",
                "marker",
            ]
        )
    )
    words = draw(st.sampled_from(READERS))
    seed, value = draw(st.integers(0, 2**32)), draw(values)
    how = draw(st.sampled_from(["field", "field", "bytes", "cut", "gone", "folder"]))
    data = draw(damaged_bytes(b'{"run_id": "r", "time": "t", "type": "step", "source": "s"}\n'))

    def prepare(case: Case) -> list[str]:
        stored = sorted((case.root / "artifacts").glob("*/*/*"))
        manifests = [path for path in stored if path.name == "manifest.json"]
        others = [path for path in stored if path.is_file() and path.name != "manifest.json"]
        file = {
            "manifest": manifests[seed % len(manifests)], "data": others[seed % len(others)], "marker": case.root / "foretune.json",
        }.get(name, case.run / name)  # fmt: skip
        _damage(file, how, seed, value, data)
        return read_by(words, case)

    return Attempt(in_words(name, how, words, seed, value, data), prepare, own_root=True, heals=name != "marker")


def _damage(file: Path, how: str, seed: int, value: Any, data: bytes) -> None:
    before = file.read_bytes()
    file.unlink()
    if how == "folder":
        file.mkdir()
    elif how == "bytes":
        file.write_bytes(data)
    elif how == "cut":
        file.write_bytes(before[: seed % (len(before) + 1)])
    elif how == "field":
        file.write_bytes(_spoiled_document(file, before, seed, value))


def _spoiled_document(file: Path, before: bytes, seed: int, value: Any) -> bytes:
    if file.suffix == ".yaml":
        content = yaml.safe_load(before)
        places = leaves(content)
        return yaml_text(put(content, places[seed % len(places)], value)).encode()
    if file.suffix == ".jsonl":
        lines = [json.loads(line) for line in before.splitlines()]
        for event in lines[:: 1 + seed % 3]:
            event[sorted(event)[seed % len(event)]] = value
        return "".join(dumped(event) + "\n" for event in lines).encode()
    if file.suffix == ".json":
        content = json.loads(before)
        places = leaves(content)
        return dumped(put(content, places[seed % len(places)], value) if places else value).encode()
    return before[: len(before) // 2] + b"\x00" + before[len(before) // 2 + 1 :]
