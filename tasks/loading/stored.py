"""The tensors of a model folder as they are stored: names, dtypes, shapes, and the values one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretune.tasks.loading.files import model_files
from foretune.tasks.loading.foreign import reading
from foretune.tasks.loading.foreign_code import refuse_pickle
from foretune.tasks.loading.headers import Stored

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch
    from torch import Tensor
    from transformers import PreTrainedModel


LETTERS = {"bfloat": "BF", "float": "F", "uint": "U", "int": "I", "bool": "BOOL"}
"""safetensors' words for torch's kinds of numbers; the width follows."""


class StoredWeights:
    """Stored name -> tensor of a model folder. Safetensors are mapped, pickles read without running code."""

    def __init__(self, folder: Path) -> None:
        self._mapped: dict[str, Any] = {}
        self._pickled: dict[str, Tensor] = {}
        # Whether pickles may be opened at all was decided when the model was loaded.
        for path in model_files(folder, allow_pickle=True).weights:
            with reading(path):
                self._add(path)

    def _add(self, path: Path) -> None:
        if path.suffix == ".bin":
            import torch

            refuse_pickle(path)
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            if not isinstance(tensors, dict) or not all(isinstance(t, torch.Tensor) for t in tensors.values()):
                raise ValueError("it holds something other than named tensors")
            self._pickled |= tensors
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


def stored_names(model: PreTrainedModel, name: str, layout: Iterable[str]) -> list[str]:
    """The files' names of this parameter: they may lack the model's prefix, and may hold a tied one twice."""
    wanted, prefix = model.get_parameter(name), f"{model.base_model_prefix}."
    aliases = [other for other, p in model.named_parameters(remove_duplicate=False) if p is wanted]
    spelt = {form for alias in aliases for form in (alias, alias.removeprefix(prefix), prefix + alias)}
    return sorted(spelt & set(layout))


def torch_dtype(dtype: str) -> torch.dtype:
    """torch's dtype of safetensors' word for it."""
    from safetensors.torch import _TYPES

    return _TYPES[dtype]


def _dtype_name(dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    kind = next((kind for kind in LETTERS if name.startswith(kind)), None)
    return name.upper() if kind is None else LETTERS[kind] + name.removeprefix(kind)
