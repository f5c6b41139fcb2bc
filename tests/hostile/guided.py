"""Coverage-guided fuzzing of the parsers, where atheris is installed: `python -m tests.hostile.guided TARGET SECONDS`.

A parser may return or raise one of storage's two errors; anything else is a fault, and so is an error of two lines.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

Parser = Callable[[bytes], object]


def _yaml(data: bytes) -> None:
    from foretune.storage.documents import yaml_mapping

    yaml_mapping(data, "request r", "mend it")


def _request(data: bytes) -> None:
    from foretune.flows.request import parse_request
    from foretune.storage.documents import yaml_mapping

    parse_request(yaml_mapping(data, "request r", "mend it"), "r")


def _gate(data: bytes) -> None:
    from foretune.flows.gate import load_gate

    _through_a_file(data, "gate.yaml", load_gate)


def _event(data: bytes) -> None:
    from foretune.storage.event_records import event_in, is_whole

    event = event_in(data)
    if event is not None:
        is_whole(event)


def _result(data: bytes) -> None:
    from foretune.storage.documents import json_object
    from foretune.storage.records import StoredResult

    json_object(data, "result.json", StoredResult, "run it again")


def _rows(data: bytes) -> None:
    from foretune.storage.datasets import read_rows
    from foretune.tasks.samples.forms import canonical_rows

    _through_a_file(data, "rows.jsonl", lambda file: canonical_rows(read_rows(file)))


def _csv(data: bytes) -> None:
    from foretune.storage.datasets import read_rows

    _through_a_file(data, "rows.csv", read_rows)


def _labels(data: bytes) -> None:
    from foretune.tasks.saes.labels import read_labels

    _through_a_file(data, "labels.json", read_labels)


def _text(data: bytes) -> None:
    from foretune.storage.display import one_line, shown
    from tests.hostile.contract import faults_of_text

    text = data.decode(errors="surrogateescape")
    assert not faults_of_text(shown(text).replace("\u200d", "")) and "\n" not in one_line(text)
    assert shown(shown(text)) == shown(text)


def _through_a_file(data: bytes, name: str, read: Callable[[str], object]) -> None:
    file = Path(tempfile.gettempdir()) / f"guided-{name}"
    file.write_bytes(data)
    read(str(file))


TARGETS: dict[str, Parser] = {
    "YAML": _yaml, "request": _request, "gate": _gate, "event": _event, "result": _result, "rows": _rows, "CSV": _csv,
    "labels": _labels, "text": _text,
}  # fmt: skip
SEEDS = [b"a: [1, {b: c}]", b'{"status": "completed", "artifacts": {}}', b'{"text": "a"}\n', b"a,b\n1,2\n", b'{"1": "x"}',
         b'{"run_id":"r","time":"t","type":"step","source":"s"}', b"rules: [{signal: any, reason: x}]",
         b"dataset: {path: d}\nmodel: {name_or_path: m}\n"]  # fmt: skip


def fuzz(target: str, seconds: int) -> None:
    """In this process until libFuzzer ends it; prints the number of runs."""
    import atheris

    with atheris.instrument_imports(include=["foretune.storage", "foretune.flows", "foretune.tasks"]):
        _once(target, b"")
    from foretune.storage.errors import BadInput, StorageFault

    def one(data: bytes) -> None:
        try:
            TARGETS[target](data)
        except (BadInput, StorageFault) as error:
            assert "\n" not in str(error)

    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(SEEDS):
            (Path(corpus) / str(number)).write_bytes(seed)
        words = [
            sys.argv[0],
            corpus,
            f"-max_total_time={seconds}",
            "-max_len=4096",
            "-rss_limit_mb=3000",
            "-timeout=20",
            "-print_final_stats=1",
        ]
        atheris.Setup([*words, f"-artifact_prefix={tempfile.gettempdir()}/"], one)
        atheris.Fuzz()


def _once(target: str, data: bytes) -> None:
    from foretune.storage.errors import BadInput, StorageFault

    with contextlib.suppress(BadInput, StorageFault):
        TARGETS[target](data)


def main(seconds: int) -> int:
    """Every target in a process of its own; the results beside those of the other kinds, and how many failed."""
    from tests.hostile.record import keep

    failures = 0
    for target in TARGETS:
        began = time.monotonic()
        status, said = _target(target, seconds)
        runs = [line.rsplit(" ", 1)[-1] for line in said.splitlines() if "number_of_executed_units" in line]
        left = [line for line in said.splitlines() if "Exception" in line or "Error" in line][:3] if status else []
        tried, failed = int(runs[0]) if runs else int(bool(status)), int(bool(status))
        failures += failed
        row = {"kind": f"guided: {target}", "tried": tried, "held": tried - failed, "failed": failed}
        keep(row | {"left": ["; ".join(left)[:600]] if failed else []})
        took = round(time.monotonic() - began)
        print(
            json.dumps({"target": target, "runs": tried, "failed": failed, "seconds": took, "left": left}), flush=True
        )
    return failures


def _target(target: str, seconds: int) -> tuple[int, str]:
    """Status and stderr of the process that fuzzes one target."""
    command = [sys.executable, "-m", "tests.hostile.guided", target, str(seconds)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=seconds + 300)
    except subprocess.TimeoutExpired:
        return 1, "Error: it had not ended 300 s after its time was over"
    return done.returncode, done.stderr


if __name__ == "__main__":
    if len(sys.argv) == 3:
        fuzz(sys.argv[1], int(sys.argv[2]))
    else:
        sys.exit(bool(main(int(sys.argv[1]))))
