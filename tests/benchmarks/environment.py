"""Where and on what a benchmark ran: stored beside its numbers."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results")
LIBRARIES = ("torch", "transformers", "prefect", "pyarrow", "safetensors", "s3fs", "sae-lens")


def environment() -> dict[str, Any]:
    """Processor, cores, memory, versions, commit, date, and how busy the machine was."""
    cores = len(os.sched_getaffinity(0))
    return {
        "cpu": _processor(),
        "cores": cores,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "threads": int(os.environ.get("OMP_NUM_THREADS", cores)),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "commit": _git("rev-parse", "HEAD") + ("+" if _git("status", "--porcelain", "--", "*.py") else ""),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_results(name: str, rows: list[dict[str, Any]], started: dict[str, Any] | None = None) -> Path:
    """results/<name>.json: the environment (give the one from before a long benchmark) and the rows, one a line."""
    block = json.dumps(started or environment(), indent=1)
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(f'{{"environment": {block},\n "rows": [\n{lines}\n ]}}\n')
    return path


def with_earlier(name: str, rows: list[dict[str, Any]], keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """`rows`, and behind them the stored ones that were not measured again; `keys` say what one row is about."""
    path = RESULTS / f"{name}.json"
    earlier = json.loads(path.read_text())["rows"] if path.exists() else []
    done = {tuple(str(row.get(key)) for key in keys) for row in rows}
    return rows + [row for row in earlier if tuple(str(row.get(key)) for key in keys) not in done]


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


def _git(*words: str) -> str:
    asked = subprocess.run(["git", *words], capture_output=True, text=True, cwd=RESULTS.parent, check=False)
    return asked.stdout.strip()
