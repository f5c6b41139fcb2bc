"""Headers of safetensors files, read without torch and held against the size of the file before anything is made."""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from foretune.storage.errors import BadInput, disk_faults
from foretune.tasks.loading.foreign import COPY_AGAIN, Foreign, checked, is_plain, parsed

LARGEST_HEADER = 100_000_000  # bytes; safetensors itself reads no more
FLOATS = ("F64", "F32", "F16", "BF16")
"""What a weight that a gradient moves may be stored as."""


@dataclass(frozen=True)
class Stored:
    """Form of one stored tensor; `dtype` in safetensors' words, F32 or BF16."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * bits_of(self.dtype) // 8

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


Size = Annotated[int, Field(ge=0, le=2**62)]


class _Entry(Foreign):
    dtype: Annotated[str, Field(pattern=r"^(BOOL|[A-Z]{1,2}\d{1,3}(_[A-Z0-9]+)?)$")]
    shape: Annotated[list[Size], Field(max_length=64)]
    data_offsets: Annotated[list[Size], Field(min_length=2, max_length=2)]


def bits_of(dtype: str) -> int:
    """Bits of one number: 16 of BF16, 8 of F8_E4M3 and of BOOL."""
    width = re.search(r"\d+", dtype)
    return int(width[0]) if width else 8


def stored_tensors(file: Path) -> dict[str, Stored]:
    """Name -> form of every tensor in a safetensors file; no value is read.

    Raises BadInput for a header that does not describe this file: its length, its text, or tensors that lie outside
    the file, on each other, or are of another size than their shape.
    """
    if not is_plain(file):
        raise BadInput(f"{file}: not a file that can be read; {COPY_AGAIN}")
    with disk_faults(file, "read"), open(file, "rb") as stream:
        size = file.stat().st_size
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(size - 8, LARGEST_HEADER):
            raise BadInput(
                f"{file}: not a whole safetensors file (its header would have {length:,} bytes); {COPY_AGAIN}"
            )
        data = stream.read(length)
    header = parsed(data, file)
    header.pop("__metadata__", None)
    entries = {
        name: checked(_Entry, entry, f"{file}: tensor {name[:80]}", COPY_AGAIN) for name, entry in header.items()
    }
    _refuse_other_places(file, entries, size - 8 - length)
    return {name: Stored(entry.dtype, tuple(entry.shape)) for name, entry in entries.items()}


def _refuse_other_places(file: Path, entries: dict[str, Any], size: int) -> None:
    """Tensors fill the file from end to end, each as long as its shape says."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        first, last = entry.data_offsets
        wanted = math.prod(entry.shape) * bits_of(entry.dtype) / 8
        if first != end or last - first != wanted or last > size:
            raise BadInput(
                f"{file}: tensor {name[:80]} lies at bytes {first:,} to {last:,}, its shape {entry.shape} asks for "
                f"{math.ceil(wanted):,} bytes from {end:,} of {size:,}; {COPY_AGAIN}"
            )
        end = last
    if end != size:
        raise BadInput(f"{file}: its tensors end at byte {end:,} of {size:,}; {COPY_AGAIN}")
