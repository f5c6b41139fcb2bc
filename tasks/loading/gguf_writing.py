"""A model folder as one GGUF file, in float16 or float32, and read back before it is there.

The gguf library writes; names and rows are the reverse of transformers' reading, by which the file is checked.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from foretune.storage.cache import new_draft
from foretune.storage.errors import BadInput, disk_faults
from foretune.tasks.engine.invariants import BrokenInvariant
from foretune.tasks.loading.gguf_header import check_gguf
from foretune.tasks.loading.gguf_metadata import architecture_of, copy_metadata, write_metadata
from foretune.tasks.loading.gguf_names import GgufNames, names_of
from foretune.tasks.loading.models import quiet_transformers
from foretune.tasks.loading.stored import StoredWeights

GgufType = Literal["f16", "f32"]
FILE_TYPES = {"f32": 0, "f16": 1}  # general.file_type
Told = Callable[[int, int], None]


def write_gguf(
    target: Path,
    folder: Path,
    origin: Path | None,
    kind: GgufType = "f16",
    notes: dict[str, str] | None = None,
    told: Told = lambda done, total: None,
) -> int:
    """Write the model of `folder` to `target`, which must not be there; its size in bytes.

    With `origin`, the GGUF file that the folder's model came from, its fields are carried over. Vectors stay float32,
    as llama.cpp keeps them. `notes` are more fields of text. BadInput for a model that cannot be written so,
    BrokenInvariant where the written file reads back as another model.
    """
    from gguf import GGUFReader

    quiet_transformers()
    logging.getLogger("gguf").setLevel(logging.ERROR)
    reader = None
    if origin is not None:
        check_gguf(origin)
        reader = GGUFReader(origin)
    architecture = architecture_of(folder) if reader is None else reader.fields["general.architecture"].contents()
    names, weights = names_of(folder, architecture), StoredWeights(folder)
    draft = target.with_name(f".{new_draft(target.name)}")
    try:
        with disk_faults(draft):
            _write(draft, folder, reader, names, weights, kind, {"general.name": folder.name, **(notes or {})}, told)
            _check(draft, folder, weights, kind)
            os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)
    return target.stat().st_size


def _write(
    draft: Path,
    folder: Path,
    reader: Any,
    names: GgufNames,
    weights: StoredWeights,
    kind: GgufType,
    notes: dict[str, str],
    told: Told,
) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(draft, names.architecture)
    name = notes.pop("general.name")
    if reader is None:
        write_metadata(folder, writer, name)
    else:
        copy_metadata(reader, writer)
    writer.add_file_type(FILE_TYPES[kind])
    for key, text in notes.items():
        writer.add_string(key, text)
    tensors = _tensors(reader, names, weights, kind)
    for key, (shape, dtype, _) in tensors.items():
        import numpy as np

        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        writer.add_tensor_info(key, shape, np.dtype(dtype), size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for done, (_, _, values) in enumerate(tensors.values(), start=1):
        writer.write_tensor_data(values())
        told(done, len(tensors))
    writer.close()


def _tensors(
    reader: Any, names: GgufNames, weights: StoredWeights, kind: GgufType
) -> dict[str, tuple[tuple[int, ...], str, Callable[[], Any]]]:
    """By GGUF's name, in the order of the file it came from: shape, kind of numbers, and the values when asked for."""
    layout = weights.layout()
    wanted = list(names.folder_names) if reader is None else [tensor.name for tensor in reader.tensors]
    kept = {} if reader is None else {tensor.name: tensor for tensor in reader.tensors}
    found: dict[str, tuple[tuple[int, ...], str, Callable[[], Any]]] = {}
    used: set[str] = set()
    for name in wanted:
        own = names.folder_names.get(name)
        if own in layout:
            used.add(own)
            shape = layout[own].shape
            turned = names.stored(name, _empty(shape)).shape
            dtype = "float32" if len(shape) < 2 or kind == "f32" else "float16"
            found[name] = tuple(turned), dtype, _values(names, weights, name, own, dtype)
        elif name in kept and kept[name].data.dtype.name in ("float32", "float16"):  # RoPE's factors, and such
            data = kept[name].data
            found[name] = tuple(data.shape), data.dtype.name, lambda data=data: data
        elif reader is not None:
            raise BadInput(f"--gguf: {name} of the model's own file is not in its folder; export a folder")
    if left := sorted(set(layout) - used - _tied(names, layout)):
        raise BadInput(f"--gguf: {left[0]} has no name in a GGUF file of {names.architecture}; export a folder")
    return found


def _tied(names: GgufNames, layout: Any) -> set[str]:
    """The output layer of a folder that stores it a second time, beside the embeddings that it is tied to."""
    return {"lm_head.weight"} if "output.weight" not in names.folder_names else set()


def _empty(shape: tuple[int, ...]) -> Any:
    import torch

    return torch.empty(shape, device="meta")


def _values(names: GgufNames, weights: StoredWeights, name: str, own: str, dtype: str) -> Callable[[], Any]:
    def values() -> Any:
        import torch

        stored = names.stored(name, weights[own]).to(getattr(torch, dtype)).contiguous()
        if not torch.isfinite(stored).all():
            raise BadInput(f"--gguf: {own} has values beyond float16; add --gguf-type f32")
        return stored.numpy()

    return values


def _check(draft: Path, folder: Path, weights: StoredWeights, kind: GgufType) -> None:
    """Read back as transformers reads it, every weight is the folder's, rounded as it was written."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config: Any = AutoConfig.from_pretrained(draft.parent, gguf_file=draft.name, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    tensors = load_gguf_checkpoint(draft, return_tensors=True, model_to_load=model)["tensors"]
    layout = weights.layout()
    for name, read in tensors.items():
        if name not in layout:
            continue
        wanted = weights[name]
        rounded = wanted.half().float() if wanted.ndim > 1 and kind == "f16" else wanted.float()
        if read.shape != rounded.shape or not torch.allclose(read.float(), rounded, rtol=0, atol=1e-6):
            raise BrokenInvariant(f"{name} reads back from the GGUF file as another weight; export a folder")
    missing = set(layout) - set(tensors) - {"lm_head.weight"}
    if missing:
        raise BrokenInvariant(f"{sorted(missing)[0]} does not read back from the GGUF file; export a folder")
