"""Outputs: files that a user names to be written. Nothing that is there is written over unless it is said twice."""

from __future__ import annotations

import os
import stat

from foretune.storage.errors import BadInput, StorageFault
from foretune.storage.places import Place


def checked_output(uri: str, source: str, force: bool) -> Place:
    """Where a file that is made of `source` may be written.

    BadInput for a folder, a device or a pipe, for the source itself under whatever name, and, without `force`, for
    anything that exists.
    """
    place = Place(uri)
    is_bucket = not place.is_local and place.uri.count("/") == 2
    if uri.endswith("/") or is_bucket or place.is_folder():
        raise BadInput(f"{uri}: is a folder; give the name of a file")
    mode = _mode(place)
    if mode is not None and not stat.S_ISREG(mode):
        raise BadInput(f"{uri}: is a device or a pipe, not a file; give the name of a file")
    if source and _is_same(place, Place(source)):
        raise BadInput(f"{uri}: is the file that is read ({source}); give another name")
    if not force and (mode is not None or (not place.is_local and place.exists())):
        raise BadInput(f"{uri}: exists; give another name, or --force to replace it")
    return place


def write_output(place: Place, data: bytes) -> None:
    """Write the whole file at once. BadInput where that cannot be: the place is the user's choice, not a root."""
    try:
        place.write_bytes(data)
    except StorageFault as fault:
        if not place.is_local:
            raise
        raise BadInput(str(fault).replace("another --root", "another place")) from fault
    except OSError as error:
        raise BadInput(f"{place.uri}: cannot write: {error.strerror}; choose another place") from error


def _mode(place: Place) -> int | None:
    """What is there on disk, links followed; None where nothing is, or on S3."""
    if not place.is_local:
        return None
    try:
        return os.stat(place.local_path).st_mode
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadInput(f"{place.uri}: cannot write: {error.strerror}; choose another place") from error


def _is_same(one: Place, other: Place) -> bool:
    if not (one.is_local and other.is_local):
        return one == other
    try:
        return os.path.samefile(one.local_path, other.local_path)
    except OSError:
        return False
