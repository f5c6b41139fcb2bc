"""A stored safetensors file whose tensors are read one by one and not mapped: of a mapped file all that was ever read
counts to a process's memory, and the recursion reads the gradients of every block again and again."""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from foretune.storage.errors import StorageFault

if TYPE_CHECKING:
    import torch

MOST_OPEN = 128
"""Files that stay open between two reads, in a process: opening one anew takes longer than reading a row of it."""

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class TensorFile:
    """`fetch` gives the file's local path, verified. It is called again where the file has gone meanwhile, as one of a
    cache may."""

    def __init__(self, fetch: Callable[[], Path]) -> None:
        self._fetch, self._path = fetch, fetch()
        self._file: _OpenFile | None = None
        with open(self._path, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            self._tensors: dict[str, dict[str, Any]] = json.loads(stream.read(length))
        self._start = 8 + length
        self._tensors.pop("__metadata__", None)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name]["shape"])

    def names(self) -> list[str]:
        """In the order in which safetensors has them."""
        return list(self._tensors)

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor in its stored dtype, of the caller's own. KeyError for an unknown name."""
        begin, end = self._tensors[name]["data_offsets"]
        numbers = _place(end - begin)
        self._read(numbers.data, self._start + begin)
        return self._as_stored(numbers, name, self.shape(name))

    @staticmethod
    def stacked(parts: Sequence[tuple[TensorFile, int]], name: str) -> torch.Tensor:
        """[k, ...]: of k files, all alike, the part of the tensor of this name at a place of its first axis each; in
        the stored dtype, of the caller's own. KeyError for an unknown name."""
        first, _ = parts[0]
        size = first._part_bytes(name)
        numbers = _place(size * len(parts))
        for number, (file, at) in enumerate(parts):
            file._read_part(numbers.data[number * size : (number + 1) * size], name, at)
        return first._as_stored(numbers, name, (len(parts), *first.shape(name)[1:]))

    def _read_part(self, buffer: memoryview, name: str, at: int) -> None:
        begin = self._start + self._tensors[name]["data_offsets"][0]
        self._read(buffer, begin + at * len(buffer))

    def _part_bytes(self, name: str) -> int:
        begin, end = self._tensors[name]["data_offsets"]
        return (end - begin) // self.shape(name)[0]

    def _as_stored(self, numbers: Any, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        import torch

        dtype = getattr(torch, _DTYPES[self._tensors[name]["dtype"]])
        return torch.from_numpy(numbers).view(dtype).view(shape) if numbers.size else torch.empty(shape, dtype=dtype)

    def _read(self, buffer: memoryview, offset: int) -> None:
        file, done = self._opened(), 0
        while done < len(buffer):
            read = os.preadv(file.number, [buffer[done:]], offset + done)
            if not read:
                raise StorageFault(f"{self._path}: ends before its tensors do")
            done += read

    def _opened(self) -> _OpenFile:
        if self._file is not None:
            return self._file
        try:
            file = _OpenFile(os.open(self._path, os.O_RDONLY))
        except FileNotFoundError:
            self._path = self._fetch()
            file = _OpenFile(os.open(self._path, os.O_RDONLY))
        if len(_OpenFile.kept) < MOST_OPEN:
            self._file = file
            _OpenFile.kept.add(file)
        return file


def _place(size: int) -> Any:
    import numpy as np

    return np.empty(size, np.uint8)


class _OpenFile:
    """A file's descriptor, closed with its last reader."""

    kept: ClassVar[weakref.WeakSet[_OpenFile]] = weakref.WeakSet()

    def __init__(self, number: int) -> None:
        self.number = number
        weakref.finalize(self, os.close, number)
