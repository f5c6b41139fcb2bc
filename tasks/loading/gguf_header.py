"""The header of a GGUF file, read without torch and within the size of the file.

Format: ggml's docs/gguf.md. Magic, version, counts; then fields of a name, a type and a value; then tensors of a name,
dimensions, a type and an offset.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foretune.storage.errors import BadInput
from foretune.tasks.loading.foreign import COPY_AGAIN, is_plain, reading

MAGIC = b"GGUF"
VERSIONS = (2, 3)
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_KEPT_ITEMS = 16  # of an array: vocabularies are only passed over


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says of itself; long arrays are left out of `fields`."""

    fields: dict[str, Any]
    tensors: dict[str, list[int]] = field(default_factory=dict)  # name -> dimensions


class _Cursor:
    """A place in the file; whatever would lie behind its end is a ValueError before it is read."""

    def __init__(self, data: Any) -> None:
        self.data, self.at = data, 0

    def number(self, kind: str) -> Any:
        (value,) = struct.unpack_from("<" + kind, self.data, self._pass(struct.calcsize("<" + kind)))
        return value

    def count(self, smallest: int) -> int:
        """A number of things of at least `smallest` bytes each."""
        count = self.number("Q")
        if count * smallest > len(self.data) - self.at:
            raise ValueError(f"{count:,} entries announced at byte {self.at:,} of {len(self.data):,}")
        return count

    def text(self) -> str:
        length = self.count(1)
        start = self._pass(length)
        return self.data[start : start + length].decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self._array()
        if kind not in _NUMBERS:
            raise ValueError(f"a field of unknown type {kind} before byte {self.at:,}")
        return self.number(_NUMBERS[kind])

    def _array(self) -> list[Any] | None:
        kind = self.number("I")
        if kind in _NUMBERS:
            width = struct.calcsize("<" + _NUMBERS[kind])
            count = self.count(width)
            start = self._pass(count * width)
            return (
                list(struct.unpack_from(f"<{count}{_NUMBERS[kind]}", self.data, start))
                if count <= _KEPT_ITEMS
                else None
            )
        if kind != _STRING:
            raise ValueError(f"an array of type {kind} before byte {self.at:,}")
        items = []
        for _ in range(self.count(8)):
            start = self._pass(self.count(1))
            if len(items) < _KEPT_ITEMS:
                items.append(self.data[start : self.at].decode("utf-8", "replace"))
        return items

    def _pass(self, length: int) -> int:
        start, self.at = self.at, self.at + length
        if self.at > len(self.data):
            raise ValueError(f"it ends at byte {len(self.data):,} where {length:,} more are announced")
        return start


def gguf_header(path: Path) -> GgufHeader:
    """The header of `path`. BadInput for what is no whole GGUF file."""
    if not is_plain(path):
        raise BadInput(f"model {path}: no such file; check the path")
    with reading(f"model {path}"), open(path, "rb") as stream:
        if stream.read(4) != MAGIC:
            raise BadInput(f"model {path}: not a GGUF file; copy it again")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _header(data)


def _header(data: Any) -> GgufHeader:
    cursor = _Cursor(data)
    cursor.at = len(MAGIC)
    version = cursor.number("I")
    if version not in VERSIONS:
        raise ValueError(f"GGUF version {version}, known are {' and '.join(map(str, VERSIONS))}")
    tensors, fields = cursor.count(24), cursor.count(13)
    found: dict[str, Any] = {}
    for _ in range(fields):
        name = cursor.text()
        found[name] = cursor.value(cursor.number("I"))
    shapes: dict[str, list[int]] = {}
    for _ in range(tensors):
        name = cursor.text()
        dimensions = cursor.number("I")
        if dimensions > 8:
            raise ValueError(f"tensor {name[:80]} has {dimensions:,} dimensions")
        shapes[name] = [cursor.number("Q") for _ in range(dimensions)]
        cursor.number("I")
        offset = cursor.number("Q")
        # The most compressed types take more than a bit a number.
        if offset + math.prod(shapes[name]) // 8 > len(data):
            raise ValueError(f"tensor {name[:80]} of shape {shapes[name]} at {offset:,} lies outside the file")
    return GgufHeader(found, shapes)


def check_gguf(path: Path, weights: bool = True) -> None:
    """Raise BadInput for a file that is no whole GGUF model: torn, one part of several, or without an architecture;
    with `weights`, for one that holds a vocabulary alone too."""
    header = gguf_header(path)
    parts = header.fields.get("split.count", 1)
    if isinstance(parts, int) and parts > 1:
        number = header.fields.get("split.no", 0)
        raise BadInput(
            f"model {path}: part {number + 1} of {parts} of a split model; merge it with gguf-split --merge and give "
            "the one file"
        )
    architecture = header.fields.get("general.architecture")
    if not isinstance(architecture, str):
        raise BadInput(f"model {path}: a GGUF file without a model in it; give the file that holds the weights")
    if "adapter" in str(header.fields.get("general.type", "")):
        raise BadInput(f"model {path}: an adapter, not a model; merge it into its base model first")
    kind = header.fields.get("general.type", "model")
    if kind not in ("model", "vocab"):
        raise BadInput(
            f"model {path}: a GGUF file of type {kind!s:.40}, not a model; give the file that holds the weights"
        )
    if not weights:
        return
    layers = header.fields.get(f"{architecture}.block_count")
    if "tokenizer.ggml.model" in header.fields and not header.tensors:
        raise BadInput(f"model {path}: holds a vocabulary and no weights; give the file that holds the weights")
    held = {name.split(".")[1] for name in header.tensors if name.startswith("blk.")}
    if isinstance(layers, int) and header.tensors and len(held) < layers:
        raise BadInput(f"model {path}: says {layers:,} layers and holds {len(held)} of them; {COPY_AGAIN}")
