"""Slugs: a name as people write it, for places and URLs."""

from __future__ import annotations

import re


def slug(name: str, longest: int | None = None) -> str:
    """Small letters, digits and single hyphens, at most `longest` of them; empty where nothing is left."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:longest].strip("-")
