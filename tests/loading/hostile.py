"""Folders that lie: ways to damage a copy of the tiny Llama, and what `foretune plan` says of each."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

Damage = Callable[[Path], Any]

DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000
UP = "model.layers.0.mlp.up_proj.weight"


def text(name: str, content: str | bytes) -> Damage:
    """A file of the folder holds this instead."""
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def fields(name: str, **changes: Any) -> Damage:
    """A JSON file of the folder, or a new one, has these fields too."""

    def damage(folder: Path) -> None:
        path = folder / name
        old = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(old | changes))

    return damage


def tensors(change: Callable[[dict], Any]) -> Damage:
    """The weights are saved again, changed."""

    def damage(folder: Path) -> None:
        content = load_file(folder / "model.safetensors")
        change(content)
        save_file({name: t.contiguous() for name, t in content.items()}, folder / "model.safetensors", {"format": "pt"})

    return damage


def as_dtype(name: str, dtype: str) -> Damage:
    """One tensor is stored as this dtype of torch."""
    import torch

    return tensors(lambda content: content.update({name: content[name].to(getattr(torch, dtype))}))


def header(change: Callable[[dict], Any], length: int | None = None) -> Damage:
    """The header of the weights says something else than the file holds."""

    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        data = path.read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        said = json.loads(data[8 : 8 + size])
        change(said)
        new = json.dumps(said).encode()
        path.write_bytes(struct.pack("<Q", len(new) if length is None else length) + new + data[8 + size :])

    return damage


def index(*maps: dict[str, str] | Any, whole: Any = None) -> Damage:
    """The weights lie in one shard, and an index says this about them: changes to the true map, or the whole file."""

    def damage(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        held = load_file(folder / "model-00001-of-00001.safetensors")
        said = dict.fromkeys(held, "model-00001-of-00001.safetensors")
        for change in maps:
            said |= change
        content = {"metadata": {}, "weight_map": said} if whole is None else whole
        (folder / "model.safetensors.index.json").write_text(
            content if isinstance(content, str) else json.dumps(content)
        )

    return damage


def pickled(name: str = "pytorch_model.bin") -> Damage:
    """The weights are a pickle of this name."""

    def damage(folder: Path) -> None:
        import torch

        torch.save(load_file(folder / "model.safetensors"), folder / name)
        (folder / "model.safetensors").unlink()

    return damage


def linked(name: str, to: str | None = None) -> Damage:
    """A file of the folder is a link to a copy elsewhere, or to `to`."""

    def damage(folder: Path) -> None:
        elsewhere = folder.parent / "elsewhere"
        elsewhere.mkdir(exist_ok=True)
        shutil.move(folder / name, elsewhere / name)
        (folder / name).symlink_to(to or elsewhere / name)

    return damage


def pipe(name: str) -> Damage:
    """A file of the folder is a pipe, which nobody writes to."""

    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return damage


def both(*damages: Damage) -> Damage:
    """One after the other."""
    return lambda folder: [damage(folder) for damage in damages]


def second_shard(folder: Path) -> None:
    """Two shards hold the same tensor."""
    index()(folder)
    shutil.copy(folder / "model-00001-of-00001.safetensors", folder / "model-00002.safetensors")
    path = folder / "model.safetensors.index.json"
    said = json.loads(path.read_text())
    said["weight_map"][UP] = "model-00002.safetensors"
    path.write_text(json.dumps(said))
