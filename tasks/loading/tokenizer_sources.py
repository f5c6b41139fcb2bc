"""Where a model's tokenizer lies: a folder with tokenizer, chat template and configuration, without its weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from foretune.storage.errors import BadInput
from foretune.storage.places import localise
from foretune.tasks.loading.conversion import gguf_preview
from foretune.tasks.loading.files import COMPANIONS, is_companion
from foretune.tasks.loading.folders import looks_like_path
from foretune.tasks.loading.hub import hub_snapshot

if TYPE_CHECKING:
    from foretune.tasks.loading.settings import ModelSettings


def resolve_tokenizer(settings: ModelSettings) -> Path:
    """Local folder of the model's tokenizer, chat template and configuration; no weights are fetched, from the hub or
    from S3. A GGUF file has its tokenizer in it, which becomes such a folder in the user's cache.

    Raises BadInput when nothing is found.
    """
    name = settings.name_or_path
    if "://" in name or os.path.exists(os.path.expanduser(name)) or looks_like_path(name):
        found = localise(os.path.expanduser(name), is_companion)
        if found.is_file() and found.suffix.lower() == ".gguf":
            return gguf_preview(found)
        if found.is_file():
            raise BadInput(f"model {name}: a file; give the folder that tokenizer.json lies in")
        return found
    return hub_snapshot(name, settings.revision, list(COMPANIONS), "model")
