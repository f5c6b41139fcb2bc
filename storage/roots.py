"""Roots: the marker that makes a folder or prefix a storage root, with the version of its format.

A root of before the marker is recognised by what it holds (`foretune.storage.ownership`), and is given one.
"""

from __future__ import annotations

import json
import os
import stat

from foretune.storage.errors import BadInput
from foretune.storage.places import Place

MARKER = "foretune.json"
FORMAT = 1
"""Raised when an older version of the code would misread, or delete, what a newer one stores."""

_FIELD = "foretune_root"
_made_on_s3: set[str] = set()  # asked once per process


def root_to_read(uri: str | os.PathLike[str]) -> Place:
    """The root; nothing is written. BadInput when its format is newer than this code, or its marker unreadable."""
    place = Place(uri)
    marked_format(place)
    return place


def root_to_write(uri: str | os.PathLike[str]) -> Place:
    """The root, with its marker. BadInput as for reading."""
    place = Place(uri)
    if place.uri in _made_on_s3:
        return place
    if marked_format(place) is None:
        (place / MARKER).write_bytes(json.dumps({_FIELD: FORMAT}).encode() + b"\n")
    if not place.is_local:
        _made_on_s3.add(place.uri)
    return place


def marked_format(place: Place) -> int | None:
    """The version in the root's marker; None without one."""
    marker = place / MARKER
    if place.is_local and not _may_be_folder(place):
        raise BadInput(f"{place.uri}: is a file; give a folder or s3://bucket/prefix as the --root")
    try:
        content = json.loads(marker.read_bytes())
        found = content[_FIELD] if isinstance(content, dict) else None
    except FileNotFoundError:
        return None
    except BadInput:  # a ValueError too: credentials, a bucket that is not there
        raise
    except (ValueError, KeyError):
        found = None
    if not isinstance(found, int):
        raise BadInput(f"{marker.uri}: not the marker of a storage root; move that file away, or choose another --root")
    if found > FORMAT:
        raise BadInput(f"{place.uri}: stored in format {found}, this foretune knows {FORMAT}; install a newer foretune")
    return found


def _may_be_folder(place: Place) -> bool:
    """True for a folder and for what can become one; BadInput for a path that the system refuses."""
    try:
        return stat.S_ISDIR(os.stat(place.local_path).st_mode)
    except FileNotFoundError:
        return True
    except OSError as error:
        raise BadInput(
            f"{place.uri[:200]}: cannot be a storage root ({error.strerror}); choose another --root"
        ) from error
