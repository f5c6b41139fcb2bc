"""The two errors of storage, each in one line: what, where, the remedy."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Generator
from pathlib import Path

from foretune.storage.cache import cache_dir
from foretune.storage.redaction import redacted


class BadInput(ValueError):
    """The user asked for something that cannot be; one line with the remedy (exit status 2)."""

    def __init__(self, message: str):
        super().__init__(" ".join(redacted(str(message)).split()))


class FolderInTheWay(BadInput):
    """A folder lies where a file is read."""

    def __init__(self, path: str | os.PathLike[str]):
        super().__init__(f"{os.fspath(path)}: is a folder where a file is expected; move it away")


class StorageFault(RuntimeError):
    """A place failed after bounded retries; one line with the remedy (exit status 1)."""

    def __init__(self, message: str):
        super().__init__(" ".join(redacted(str(message)).split()))


class Changed(StorageFault):
    """An object was replaced between two requests of one read; reading it again gives the new one."""


class Damaged(StorageFault):
    """Stored bytes are not those that the manifest recorded; running again recomputes them."""


class Panic(RuntimeError):
    """A library written in Rust gave up; pyo3's own type is none of Exception's, and ends an engine."""


MORE_MEMORY = "lower landscape.batch_tokens or runtime.max_workers, or use a machine with more"


def out_of_memory(error: BaseException) -> bool:
    """Whether memory is what was missing: Python's, pyarrow's (a MemoryError), torch's of a device or the CPU."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    said = str(error)[:2000]
    return bool(kinds & {"MemoryError", "OutOfMemoryError"}) or (
        isinstance(error, RuntimeError | OSError)
        and any(words in said for words in ("can't allocate memory", "CUDA out of memory", "Cannot allocate memory"))
    )


@contextlib.contextmanager
def panics_as_errors() -> Generator[None]:
    """Inside the block a PanicException becomes a Panic, which is met like any other error."""
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise Panic(f"a library gave up: {error}") from error


def failure_line(error: BaseException) -> str:
    """An error as one line: where it happened (its notes), what kind it is, what it says."""
    said = " ".join(redacted(str(error)).split())
    kind = type(error).__name__
    if out_of_memory(error):
        said = f"out of memory{f' ({said})' if said else ''}; {MORE_MEMORY}"
    return ": ".join([*getattr(error, "__notes__", ()), f"{kind}: {said}" if said else kind])


def parser_line(error: Exception) -> str:
    """What a parser of text says, without its advice to programmers."""
    return "nested too deeply" if isinstance(error, RecursionError) else str(error).partition("; use sys.")[0]


_REASONS = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EROFS: "the file system is read-only; mount it writable",
    errno.EACCES: "permission denied; change the permissions",
    errno.EPERM: "permission denied; change the permissions",
    errno.EFBIG: "the file is larger than this file system allows; use another one",
    errno.EIO: "the disk reports an input/output error; check the disk",
    errno.ENOTDIR: "a parent of this path is a file; move that file",
    errno.ELOOP: "its links lead in a circle; mend them",
    errno.ENAMETOOLONG: "the path is too long for this file system; shorten it",
}
_RUST_OS_ERROR = re.compile(r"\(os error (\d+)\)")


def _os_error_in(error: Exception) -> OSError | None:
    if isinstance(error, OSError):
        return error
    # Rust libraries (safetensors) wrap the system's error in a type of their own and keep only its text.
    found = _RUST_OS_ERROR.search(str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else None


@contextlib.contextmanager
def disk_faults(path: Path, doing: str = "write") -> Generator[None]:
    """Turn a full, read-only or forbidden disk under `path` into a StorageFault that names it.

    An error that names a file outside `path` is not this disk's and passes through unchanged.
    """
    try:
        yield
    except StorageFault:
        raise
    except Exception as error:
        cause = _os_error_in(error)
        reason = _REASONS.get(cause.errno) if cause and cause.errno is not None else None
        if doing == "write" and isinstance(cause, FileNotFoundError) and cause.filename2 is None:
            reason = _no_folder_above(cause.filename)
        named = cause.filename if cause else None
        elsewhere = isinstance(named, str) and not _related(Path(named), path)
        if reason is None or elsewhere:
            raise
        raise StorageFault(f"{named or path}: cannot {doing}: {reason}{_other_place(path, doing)}") from error


def _no_folder_above(named: object) -> str | None:
    """The reason where not even the folder of a file can be made, as below /proc; else a file is missing."""
    if isinstance(named, str) and not Path(named).exists() and Path(named).parent.is_dir():
        return "no folder can be made there"
    return None


def _other_place(path: Path, doing: str) -> str:
    if doing == "read":
        return ""
    in_cache = path.absolute().is_relative_to(cache_dir())
    return " or set FORETUNE_CACHE to another folder" if in_cache else " or choose another --root"


def _related(one: Path, other: Path) -> bool:
    one, other = Path(os.path.abspath(one)), Path(os.path.abspath(other))
    return one.is_relative_to(other) or other.is_relative_to(one)
