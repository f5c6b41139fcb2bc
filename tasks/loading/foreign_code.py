"""Whether this machine runs code that comes with a model: its own word, which no request can overrule."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel

from foretune.storage.errors import BadInput

SWITCH = "FORETUNE_FORBID_REMOTE_CODE"
ALLOWING = ("", "0", "false", "no", "off")
"""Values that leave it to the request. Any other forbids, a misspelt one too."""
REMEDIES = {
    "trust_remote_code": "give a model that transformers knows by itself",
    "allow_pickle": "convert the weights to safetensors",
}


def forbidden() -> bool:
    """Whether the environment of this process forbids code that comes with a model, and pickles, which can hold it."""
    return os.environ.get(SWITCH, "").strip().lower() not in ALLOWING


def refuse_foreign_code(section: str, settings: BaseModel | None) -> None:
    """BadInput where a section of the request asks for what this machine forbids."""
    for name, remedy in REMEDIES.items():
        if getattr(settings, name, False) and forbidden():
            raise BadInput(f"{section}.{name}: true is forbidden on this machine ({SWITCH} is set); {remedy}")


def refuse_pickle(path: Path) -> None:
    """BadInput for a pickled file on a machine that forbids them, whoever allowed it."""
    if forbidden():
        raise BadInput(
            f"{path}: is pickled, which is forbidden on this machine ({SWITCH} is set); {REMEDIES['allow_pickle']}"
        )
