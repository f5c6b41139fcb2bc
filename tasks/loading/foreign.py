"""Files that others wrote: read within bounds, checked by type, and every fault one line that names the file."""

from __future__ import annotations

import contextlib
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from foretune.storage.errors import BadInput, StorageFault, disk_faults

LARGEST_JSON = 2**28
"""Bytes. A tokenizer.json of the largest vocabularies has 40 MB; what is larger is not the file it is called."""

COPY_AGAIN = "copy the file again"


class Foreign(BaseModel):
    """Fields of another tool's JSON file that are read here; the others stay as they are."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, protected_namespaces=())


Read = TypeVar("Read", bound=Foreign)


@contextlib.contextmanager
def reading(what: str | Path, remedy: str = COPY_AGAIN) -> Iterator[None]:
    """The border to the libraries that open a foreign file: whatever they raise becomes BadInput naming it.

    Disks that fail stay StorageFault, and a device without memory stays what it is: another copy of the file would
    not help. Rust's panics arrive as a BaseException, which no `except Exception` sees.
    """
    try:
        with disk_faults(Path(str(what)), "read"):
            yield
    except (BadInput, StorageFault):
        raise
    except BaseException as error:
        panicked = type(error).__name__ == "PanicException"
        if not panicked and (not isinstance(error, Exception) or type(error).__name__ == "OutOfMemoryError"):
            raise
        raise BadInput(f"{what} cannot be read ({reason_of(error)}); {remedy}") from None


def reason_of(error: BaseException) -> str:
    """The first line of what a library says, and its kind where it says too little."""
    said = str(error).strip().split("\n")[0][:300]
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, MemoryError):
        return "more than the memory holds"
    known = isinstance(error, OSError | ValueError | ImportError | RuntimeError) or type(error) is Exception
    return said if said and known else f"{type(error).__name__} {said}".strip()


def is_plain(path: Path) -> bool:
    """Whether this is a file of bytes; a pipe or a device would wait, or never end."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. BadInput for whatever else the file holds."""
    if not is_plain(path):
        raise BadInput(f"{path}: not a file that can be read; {COPY_AGAIN}")
    with disk_faults(path, "read"):
        size = path.stat().st_size
        if size > LARGEST_JSON:
            raise BadInput(f"{path}: {size:,} bytes, far more than such a file has; {COPY_AGAIN}")
        data = path.read_bytes()
    return parsed(data, path)


def parsed(data: bytes, path: Path | str) -> dict[str, Any]:
    """The object in these bytes of `path`."""
    try:
        text = data.decode("utf-8-sig")
        content = json.loads(text)
    except (ValueError, RecursionError, MemoryError) as error:
        raise BadInput(f"{path}: not valid JSON ({reason_of(error)}); {COPY_AGAIN}") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path}: holds {_kind(content)} where an object is expected; {COPY_AGAIN}")
    if "\\ud" in text.lower():  # else there is no half of a surrogate pair in it
        _refuse_halves(content, path)
    return content


def _refuse_halves(content: Any, path: Path | str) -> None:
    waiting = [("", content)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(f"{name}.{key}".lstrip("."), part) for key, part in value.items()]
            waiting += [(name, key) for key in value]
        elif isinstance(value, list):
            waiting += [(f"{name}[{at}]", part) for at, part in enumerate(value)]
        elif isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
            shown = name.encode("ascii", "backslashreplace").decode()
            raise BadInput(f"{path}: {shown} holds half of a surrogate pair, which is no text; {COPY_AGAIN}")


def checked(model: type[Read], content: Any, path: Path | str, remedy: str = "mend it or " + COPY_AGAIN) -> Read:
    """`content` as `model`. BadInput with the first field that is not what it should be."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        wanted = first["msg"][0].lower() + first["msg"][1:]
        raise BadInput(f"{path}: {field} is {_shown(first['input'])}; {wanted}; {remedy}") from None


def read_as(model: type[Read], path: Path) -> Read:
    """A JSON file as `model`."""
    return checked(model, read_json(path), path)


def _shown(value: Any) -> str:
    if isinstance(value, dict | list) or value is None:
        return _kind(value)
    try:
        said = repr(value)
    except ValueError:  # more digits than Python writes
        return "a number of thousands of digits"
    return said if len(said) <= 40 else f"{said[:37]}..."


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
