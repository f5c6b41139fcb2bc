"""Copies: folders of the user's cache that are filled once, from S3 or by a library, and then only read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from foretune.storage.cache import cache_dir, new_draft
from foretune.storage.errors import disk_faults


def cached_copy(digest: str, name: str, write: Callable[[Path], None]) -> Path:
    """A folder of the cache's copies that `write` fills once; two writers may race, and one of them wins whole."""
    copy = cache_dir() / "copies" / digest / name
    if copy.is_dir():
        return copy
    draft = copy.with_name(new_draft(name))
    try:
        with disk_faults(draft):
            draft.mkdir(parents=True)
        write(draft)
        os.replace(draft, copy)
    except OSError:
        if not copy.is_dir():  # another process was first
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return copy
