"""Where the public data of benchmarks lies."""

from __future__ import annotations

import os
from pathlib import Path


def data_folder() -> Path:
    """The folder that FORETUNE_BENCH_DATA names, else shared/data beside the project's root."""
    named = os.environ.get("FORETUNE_BENCH_DATA")
    found = Path(named) if named else Path(__file__).resolve().parents[3] / "shared/data"
    if not (found / "gsm8k_test.jsonl").exists():
        raise SystemExit(f"{found}: no public data here; name its folder in FORETUNE_BENCH_DATA")
    return found
