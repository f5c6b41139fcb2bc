"""Tools asked in environments of their own, which `make thirdparty` makes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("figures.py")
HERE = ("transformers", "sae_lens", "transformer_lens")
NEWER = ("lm_eval", "nnsight", "mergekit", "dlm_sway")
"""Those that read transformers 5, in an environment of theirs; the others pin version 4."""


def python_of(tool: str) -> Path:
    if tool in HERE:
        return Path(sys.executable)
    return PROJECT / ".bench" / ("tools5" if tool in NEWER else "tools4") / "bin" / "python"


def asked(tool: str, folder: Path, ids: Sequence[Sequence[int]], models: Sequence[str], sae: Path) -> dict[str, Any]:
    """{figures: {model folder: figure}, versions: {distribution: version}}, worked out in `folder`."""
    out, read = folder / f"{tool}.json", folder / "ids.json"
    read.write_text(json.dumps(ids))
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": "", "SAE_FOLDER": str(sae)}
    words = [str(python_of(tool)), str(SCRIPT), tool, str(out), str(read), *models]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=1800, cwd=folder)
    if done.returncode:
        raise RuntimeError(f"{tool}: {done.stderr[-2000:]}")
    return json.loads(out.read_text())
