"""A generator per kind of input: what is spoiled, and the command that reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.hostile.kinds.commands import command_lines, environments
from tests.hostile.kinds.datasets import dataset_files, rows, templates
from tests.hostile.kinds.models import gguf_headers, model_json, safetensors_headers
from tests.hostile.kinds.requests import gates, requests, triggers
from tests.hostile.kinds.saes import label_files, sae_folders
from tests.hostile.kinds.stored import stored_files

KINDS: dict[str, Callable[[], Any]] = {
    "requests": requests,
    "rows": rows,
    "dataset files": dataset_files,
    "model JSON": model_json,
    "safetensors headers": safetensors_headers,
    "GGUF headers": gguf_headers,
    "SAE folders": sae_folders,
    "label files": label_files,
    "chat templates": templates,
    "gates": gates,
    "stored files": stored_files,
    "triggers": triggers,
    "command lines": command_lines,
    "environment": environments,
}
