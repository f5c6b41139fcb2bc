"""The JSON schema that every line of events.jsonl keeps to, whatever its source."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any


def event_schema() -> dict[str, Any]:
    return json.loads(files("foretune.storage").joinpath("event_schema.json").read_bytes())
