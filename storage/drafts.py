"""A draft: an artefact while it is being written, in a folder that no reader looks into."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretune.storage.checks import Check, checked
from foretune.storage.digests import hash_file
from foretune.storage.disk import hidden, sync_file, sync_folder
from foretune.storage.errors import disk_faults
from foretune.storage.manifest import MANIFEST, FileRecord, Manifest
from foretune.storage.places import safe_name

if TYPE_CHECKING:
    import pandas
    import pyarrow
    import torch

    from foretune.storage.refs import ArtifactRef

    Rows = pandas.DataFrame | pyarrow.Table | list[dict[str, Any]]


class Draft:
    """Files under `folder`, written by the pass; the store sets `stored` once they are an artefact."""

    manifest: Manifest | None = None  # written last

    def __init__(self, folder: Path):
        self.folder = folder
        self.stored: ArtifactRef | None = None
        self.checks: list[Check] = []
        self.cost: dict[str, int | float] = {}
        with disk_faults(folder):
            folder.mkdir(parents=True)

    @property
    def ref(self) -> ArtifactRef:
        if self.stored is None:
            raise RuntimeError("the artefact is stored when its `with` block ends; read draft.ref after it")
        return self.stored

    def path(self, name: str) -> Path:
        """Where to write the file `name` ("a.json", "folder/b.bin"); its parents are made."""
        if not safe_name(name) or name == MANIFEST or hidden(name):
            raise ValueError(f"{name!r} cannot be a file of an artefact")
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write_table(self, name: str, rows: Rows) -> Path:
        """Write a Parquet file (zstd) from a data frame, an Arrow table or a list of dicts."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if isinstance(rows, list):
            table = pa.Table.from_pylist(rows)
        else:
            table = rows if isinstance(rows, pa.Table) else pa.Table.from_pandas(rows, preserve_index=False)
        path = self.path(name)
        pq.write_table(table, path, compression="zstd")
        return path

    def write_tensors(self, name: str, tensors: dict[str, torch.Tensor]) -> Path:
        """Write a safetensors file; tensors of any device and stride, no two sharing memory."""
        from safetensors.torch import save_file

        path = self.path(name)
        plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        save_file(plain, path)
        return path

    def link(self, name: str, source: Path) -> Path:
        """Take in a file that is already stored: a second name for the same bytes where the disk allows it."""
        path = self.path(name)
        try:
            os.link(source, path)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, path)
        return path

    def write_json(self, name: str, obj: Any) -> Path:
        """Write a JSON file; numpy scalars and arrays are plain; NaN and infinities refused: store null."""
        path = self.path(name)
        path.write_text(to_json(obj, indent=1) + "\n", encoding="utf-8")
        return path

    def write_text(self, name: str, text: str) -> Path:
        """Write a UTF-8 file."""
        path = self.path(name)
        path.write_text(text, encoding="utf-8")
        return path

    def check(self, name: str, compared: str, **figures: Any) -> None:
        """Record an invariant that held while the artefact was written."""
        self.checks.append(checked(name, compared, **figures))

    def files(self) -> dict[str, FileRecord]:
        """Size and sha256 of every file written so far, each forced to the disk."""
        records = {}
        for path in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            name = path.relative_to(self.folder).as_posix()
            if hidden(name):
                continue  # a library's lock or scratch file, which no listing shows
            sync_file(path)
            records[name] = FileRecord(sha256=hash_file(path), bytes=path.stat().st_size)
        if not records:
            raise ValueError(f"nothing was written into {self.folder.name}")
        return records

    def write_manifest(self, manifest: Manifest) -> None:
        """The last file of the draft."""
        self.manifest = manifest
        path = self.folder / MANIFEST
        path.write_bytes(manifest.to_bytes())
        sync_file(path)
        for folder in {path.parent, *(p for p in self.folder.rglob("*") if p.is_dir())}:
            sync_folder(folder)


def to_json(obj: Any, indent: int | None = None) -> str:
    """JSON text of plain values, numpy scalars and arrays; ValueError for NaN and infinities."""
    return json.dumps(obj, indent=indent, ensure_ascii=False, allow_nan=False, default=_plain)


def json_line(row: Any) -> str:
    """A row of JSON Lines: what JSON has no word for is null (NaN, infinities) or text (dates, decimals, bytes)."""
    return json.dumps(_written(row), ensure_ascii=False, allow_nan=False) + "\n"


def _written(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _written(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_written(item) for item in value]
    if value is None or isinstance(value, str | int):
        return value
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} is not JSON")
