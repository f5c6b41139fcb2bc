"""sae-lens releases: the library's directory of published SAEs, read without importing the library."""

from __future__ import annotations

import difflib
import functools
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from foretune.storage.errors import BadInput

PICKLED = ("connor_rob_hook_z", "goodfire", "deepseek_r1", "qwen_scope", "dictionary_learning_1")
"""Conversions of sae-lens that read pickled weights."""


@dataclass(frozen=True)
class ReleasedSae:
    """Where a published SAE lies on the hub, and what the directory adds to its configuration."""

    repo_id: str
    path: str  # folder or file in the repository
    conversion: str | None  # None: the repository holds sae-lens's own format
    overrides: dict[str, Any]
    neuronpedia_id: str | None

    @property
    def pickled(self) -> bool:
        return self.conversion in PICKLED


@functools.cache
def _directory() -> str:
    # Importing sae_lens takes seconds, and parsing all of this file one: the text is searched instead.
    found = importlib.util.find_spec("sae_lens")
    [package] = (found and found.submodule_search_locations) or []
    return (Path(package) / "pretrained_saes.yaml").read_text(encoding="utf-8")


def release_names() -> list[str]:
    """All releases that the installed sae-lens knows."""
    return re.findall(r"^([^\s#].*):$", _directory(), re.MULTILINE)


@functools.cache
def find_release(release: str, sae_id: str) -> ReleasedSae:
    """The directory's entry; a hub repository that is not in it stands for itself, the id for its folder.

    Raises BadInput with the nearest names for an unknown release or id.
    """
    block = re.search(rf"^{re.escape(release)}:\n(?:[ \t#].*\n|-.*\n|\n)*", _directory() + "\n", re.MULTILINE)
    if block is None:
        if "/" in release:
            return ReleasedSae(release, sae_id, None, {}, None)
        raise BadInput(
            f"sae.release {release}: sae-lens knows no such release; the nearest are "
            f"{_nearest(release, release_names())}"
        )
    entry = yaml.safe_load(block[0])[release]
    saes = {str(sae["id"]): sae for sae in entry["saes"]}
    if sae_id not in saes:
        raise BadInput(f"sae.sae_id {sae_id}: not in release {release}; the nearest are {_nearest(sae_id, list(saes))}")
    sae = saes[sae_id]
    return ReleasedSae(
        entry["repo_id"],
        str(sae["path"]),
        entry.get("conversion_func"),
        entry.get("config_overrides") or {},
        sae.get("neuronpedia"),
    )


def _nearest(name: str, known: list[str]) -> str:
    return ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.0))
