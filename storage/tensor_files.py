"""A stored safetensors file whose tensors are read one by one and not mapped: of a mapped file all that was ever read
counts to a process's memory, and the recursion reads the gradients of every block again and again."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretune.storage.errors import StorageFault

if TYPE_CHECKING:
    import torch

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class TensorFile:
    """`fetch` gives the file's local path, verified. It is called again where the file has gone meanwhile, as one of a
    cache may."""

    def __init__(self, fetch: Callable[[], Path]) -> None:
        self._fetch, self._path = fetch, fetch()
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

    def tensor(self, name: str, at: int | None = None) -> torch.Tensor:
        """A tensor in its stored dtype, or the part of it `at` this place of its first axis; of the caller's own.
        KeyError for an unknown name."""
        import torch

        stored, shape = self._tensors[name], self.shape(name)
        tensor = torch.empty(shape if at is None else shape[1:], dtype=getattr(torch, _DTYPES[stored["dtype"]]))
        numbers: Any = tensor.view(-1).view(torch.uint8).numpy()
        buffer, done = memoryview(numbers), 0
        with self._opened() as stream:
            stream.seek(self._start + stored["data_offsets"][0] + (at or 0) * len(buffer))
            while done < len(buffer):
                read = stream.readinto(buffer[done:])
                if not read:
                    raise StorageFault(f"{self._path}: ends before its tensors do")
                done += read
        return tensor

    def _opened(self) -> FileIO:
        try:
            return open(self._path, "rb", buffering=0)
        except FileNotFoundError:
            self._path = self._fetch()
            return open(self._path, "rb", buffering=0)
