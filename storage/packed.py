"""Compressed files, opened as streams that refuse to be much larger inside than outside."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from foretune.storage.errors import BadInput

if TYPE_CHECKING:
    import pyarrow as pa

PACKED = (".gz", ".zst")
UNPACKED_BYTES, UNPACKED_TIMES = 512 * 10**6, 50
"""A compressed file may hold half a gigabyte, or 50 times its size: text packs 3 to 20 times, a bomb 1,000 times."""
TOOLS = {".gz": "gunzip", ".zst": "unzstd"}
BROKEN = (EOFError, gzip.BadGzipFile, zlib.error)
"""What is raised for a gzip file that is none, or not whole; of zstd it is an OSError without a number."""


def packing(name: str) -> str:
    """How a file is compressed, by the end of its name; an empty text where it is not."""
    return next((end for end in PACKED if name.lower().endswith(end)), "")


def most_unpacked(path: Path) -> int:
    """Bytes that a file may have once unpacked."""
    return max(UNPACKED_BYTES, UNPACKED_TIMES * path.stat().st_size)


def opened(path: Path, packed: str) -> BinaryIO:
    """The bytes inside a file. BadInput, while it is read, for more of them than `most_unpacked`."""
    if packed == ".zst":
        return io.BufferedReader(_Zstd(path), 2**18)  # pyright: ignore[reportReturnType]
    return _Gzip(path) if packed else open(path, "rb")  # pyright: ignore[reportReturnType]


class _Allowance:
    """How many bytes may still come out of a file."""

    def __init__(self, path: Path) -> None:
        self._path, self._most = path, most_unpacked(path)
        self.left = self._most

    def take(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise BadInput(
                f"{self._path}: more than {self._most / 1e6:,.0f} MB once unpacked, from "
                f"{self._path.stat().st_size / 1e6:,.1f} MB; look at it, and unpack it with "
                f"{TOOLS[packing(self._path.name)]} if it is right"
            )


class _Gzip(gzip.GzipFile):
    def __init__(self, path: Path) -> None:
        super().__init__(path, "rb")
        self._allowance = _Allowance(path)

    def read1(self, size: int = -1) -> bytes:
        return self._counted(super().read1(size))

    def read(self, size: int | None = -1) -> bytes:
        return self._counted(super().read(self._allowance.left + 1 if size is None or size < 0 else size))

    def readline(self, size: int | None = -1) -> bytes:
        return self._counted(super().readline(self._allowance.left + 1 if size is None or size < 0 else size))

    def _counted(self, data: bytes) -> bytes:
        self._allowance.take(len(data))
        return data


class _Zstd(io.RawIOBase):
    """A zstd file of any number of frames, read by Arrow; its window is at most 128 MiB."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        super().__init__()
        self._allowance = _Allowance(path)
        self._stream: pa.NativeFile = pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        data = self._stream.read(len(buffer))
        self._allowance.take(len(data))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()
