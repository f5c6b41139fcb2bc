"""Other tools that vet training data, on the same file: seconds, CPU seconds, memory, and what they find.

`make bench-quality-venv` installs them into an environment of their own; where it is missing they are left out. Each
gets the file in a form that it reads, and is run as its documentation says, without a model and without the network.
Their checks are others than ours: counts are theirs, by their names.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

VENV = Path(__file__).parents[2] / ".bench/quality/venv"
LIMIT = 300  # seconds

JUICER = """
project_name: bench
dataset_path: {folder}/text.jsonl
export_path: {folder}/juicer/out.jsonl
np: 2
process:
  - document_deduplicator: {{}}
  - document_minhash_deduplicator: {{}}
  - character_repetition_filter: {{}}
  - special_characters_filter: {{}}
  - text_length_filter: {{min_len: 10}}
"""
TROVE = """
import sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
folder = sys.argv[1]
steps = [GopherRepetitionFilter, GopherQualityFilter]
filters = [step(exclusion_writer=JsonlWriter(f"{folder}/trove/{step.__name__}", compression=None)) for step in steps]
LocalPipelineExecutor([JsonlReader(folder, glob_pattern="text.jsonl"), *filters], tasks=1, logging_dir=None).run()
"""


LINTERS = ("dropoutt", "soup-cli")
"""The other two filter text for pretraining."""


def vetting_rivals(path: Path, data: str, names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """A row for each tool, all without `names`; none where they are not installed."""
    if not (VENV / "bin/python").exists():
        return []
    folder = path.with_name(f"{path.stem}-rivals")
    (folder / "only").mkdir(parents=True)
    rows = [json.loads(line) for line in path.open()]
    pairs = [[str(value) for value in row.values() if isinstance(value, str)] + ["", ""] for row in rows]
    _write(folder / "alpaca.jsonl", [{"instruction": pair[0], "output": pair[1]} for pair in pairs])
    _write(folder / "text.jsonl", [{"text": f"{pair[0]}\n{pair[1]}", "id": str(n)} for n, pair in enumerate(pairs)])
    (folder / "only" / path.name).write_bytes(path.read_bytes())
    (folder / "juicer.yaml").write_text(JUICER.format(folder=folder))
    (folder / "trove.py").write_text(TROVE)
    bin_ = VENV / "bin"
    scan = ["dropoutt", "scan", "only", "--offline", "--no-html", "--no-open", "--out", "dropoutt-out", "-j", "2", "-q"]
    tools: dict[str, tuple[list[list[str]], Callable[[Path, str], dict[str, int]]]] = {
        "dropoutt": ([scan], _dropoutt),
        "soup-cli": (
            [["soup", "data", "clean", "alpaca.jsonl", "-o", "cleaned.jsonl"],
             ["soup", "data", "pii", "-i", "alpaca.jsonl", "-o", "pii.jsonl"],
             ["soup", "data", "toxicity", "-i", "alpaca.jsonl", "-o", "toxicity.jsonl"]],
            _soup,
        ),
        "py-data-juicer": ([["dj-process", "--config", "juicer.yaml"]], lambda at, _: _left(at, len(rows))),
        "datatrove": ([["python", "trove.py", str(folder)]], _trove),
    }  # fmt: skip
    return [
        {"tool": name, "data": data, "rows": len(rows), **_measured(folder, bin_, commands, read)}
        for name, (commands, read) in tools.items()
        if not names or name in names
    ]


def _measured(
    folder: Path, bin_: Path, commands: list[list[str]], read: Callable[[Path, str], dict[str, int]]
) -> dict[str, Any]:
    home = folder / "home"
    home.mkdir(exist_ok=True)
    env = {**os.environ, "HOME": str(home), "HF_HUB_OFFLINE": "1", "SOUP_NO_AUDIT_LOG": "1", "COLUMNS": "200",
           "PATH": f"{bin_}:{os.environ['PATH']}"}  # fmt: skip
    before, began, said = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter(), ""
    for command in commands:
        try:
            done = subprocess.run(
                [str(bin_ / command[0]), *command[1:]], cwd=folder, env=env, capture_output=True, text=True,
                timeout=LIMIT,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"failed": f"{command[0]}: not done after {LIMIT} s"}
        said += done.stdout
        if done.returncode not in (0, 1, 2, 3) or "Traceback" in done.stderr:
            return {"failed": (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1][:200]}
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    found = read(folder, said)
    return {
        "seconds": round(time.perf_counter() - began, 2), "cpu_seconds": round(cpu, 2), "rules": len(found) or None,
        "findings": sum(found.values()), "found": {name: count for name, count in found.items() if count},
    }  # fmt: skip


def _dropoutt(folder: Path, said: str) -> dict[str, int]:
    found = [json.loads(line) for line in (folder / "dropoutt-out/findings.jsonl").open()]
    return {f"{each['check_id']} {each['title']}": each["count"] or 0 for each in found}


def _soup(folder: Path, said: str) -> dict[str, int]:
    cleaned = {name.strip(): int(n) for name, n in re.findall(r"│ ([A-Z][\w &/]+?) +│ +(\d+) │", said)}
    flagged = re.findall(r"Flagged: +(\d+)", said)
    return cleaned | {name: int(n) for name, n in zip(("pii", "abuse keywords"), flagged, strict=False)}


def _left(folder: Path, rows: int) -> dict[str, int]:
    return {"rows taken out": rows - sum(1 for _ in (folder / "juicer/out.jsonl").open())}


def _trove(folder: Path, said: str) -> dict[str, int]:
    return {
        each.name: sum(1 for file in each.glob("*.jsonl") for _ in file.open()) for each in (folder / "trove").iterdir()
    }


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
