"""Files that are installed with the code: word lists, figures."""

from __future__ import annotations

from importlib import resources


def packaged(package: str, name: str) -> bytes:
    """A file of a package; empty where it has none of that name."""
    file = resources.files(package).joinpath(name)
    return file.read_bytes() if file.is_file() else b""
