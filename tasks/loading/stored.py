"""The tensors of a model folder as they are stored: names, dtypes, shapes, and the values one at a time."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretune.tasks.loading.folders import weight_files
from foretune.tasks.loading.foreign_code import refuse_pickle

if TYPE_CHECKING:
    import torch
    from torch import Tensor


LETTERS = {"bfloat": "BF", "float": "F", "uint": "U", "int": "I", "bool": "BOOL"}
"""safetensors' words for torch's kinds of numbers; the width follows."""


@dataclass(frozen=True)
class Stored:
    """Form of one stored tensor; `dtype` in safetensors' words, F32 or BF16."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        width = 1 if self.dtype == "BOOL" else int(re.search(r"\d+", self.dtype)[0]) // 8  # pyright: ignore[reportOptionalSubscript]
        return math.prod(self.shape) * width

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


class StoredWeights:
    """Stored name -> tensor of a model folder. Safetensors are mapped, pickles read without running code."""

    def __init__(self, folder: Path) -> None:
        self._mapped: dict[str, Any] = {}
        self._pickled: dict[str, Tensor] = {}
        # Whether pickles may be opened at all was decided when the model was loaded.
        for path in weight_files(folder, allow_pickle=True):
            self._add(path)

    def _add(self, path: Path) -> None:
        if path.suffix == ".bin":
            import torch

            refuse_pickle(path)
            self._pickled |= torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        else:
            from safetensors import safe_open

            file = safe_open(path, framework="pt")
            self._mapped |= dict.fromkeys(file.keys(), file)

    def __getitem__(self, key: str) -> Tensor:
        return self._pickled[key] if key in self._pickled else self._mapped[key].get_tensor(key)

    def layout(self) -> dict[str, Stored]:
        """Form of every tensor, by name; the values are not read."""
        found = {key: Stored(_dtype_name(t.dtype), tuple(t.shape)) for key, t in self._pickled.items()}
        for key, file in self._mapped.items():
            tensor = file.get_slice(key)
            found[key] = Stored(tensor.get_dtype(), tuple(tensor.get_shape()))
        return dict(sorted(found.items()))


def _dtype_name(dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    kind = next(kind for kind in LETTERS if name.startswith(kind))
    return LETTERS[kind] + name.removeprefix(kind)
