"""Checkpoints: a base model folder plus weight deltas, written as a folder of the same form, and checked."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from foretune.storage.digests import file_digest
from foretune.tasks.engine.invariants import BrokenInvariant
from foretune.tasks.loading.files import companion_files
from foretune.tasks.loading.headers import Stored
from foretune.tasks.loading.models import LoadedModel, all_finite, load_model
from foretune.tasks.loading.settings import ModelSettings
from foretune.tasks.loading.stored import StoredWeights, stored_names

if TYPE_CHECKING:
    from torch import Tensor

    from foretune.tasks.numerics.factored import Gradient

PROBE_TOKENS = 16  # of the row on which a written checkpoint is tried
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def write_checkpoint(
    out: Path, loaded: LoadedModel, deltas: Mapping[str, Gradient], base: Path, max_shard_size: str = "2GB"
) -> None:
    """Write `base` plus `deltas` {parameter name: [out, in]} to `out`, with its config and tokenizer files.

    Every tensor keeps the name, dtype and shape that it has in `base`. Sums are formed in float32 or wider;
    tensors without a delta are copied bit by bit. Raises ValueError for a delta of another shape or for a
    weight that the base folder does not store, BrokenInvariant for a sum that is not finite.
    """
    stored = StoredWeights(base)
    layout = stored.layout()
    changes = _by_stored_name(loaded, deltas, layout)
    out.mkdir(parents=True, exist_ok=True)
    shards = _shards(layout, max_shard_size)
    for name, keys in shards.items():
        _write_shard(out / name, {key: _merged(key, stored[key], changes.get(key)) for key in keys})
    if len(shards) > 1:
        _write_index(out, shards, layout)
    for file in companion_files(base):
        copy = out / file.relative_to(base)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, copy)


def _by_stored_name(
    loaded: LoadedModel, deltas: Mapping[str, Gradient], layout: dict[str, Stored]
) -> dict[str, Gradient]:
    """Deltas under the files' names, which may lack the model's prefix and may hold a tied weight twice."""
    changes: dict[str, Gradient] = {}
    for name, delta in deltas.items():
        found = stored_names(loaded.model, name, layout)
        if not found:
            raise ValueError(
                f"{name} is not among the {len(layout)} stored tensors of {loaded.folder}: this "
                "architecture stores it in another layout; adapt other modules"
            )
        changes |= dict.fromkeys(found, delta.T if name in loaded.transposed else delta)
    return changes


def _merged(key: str, tensor: Tensor, delta: Gradient | None) -> Tensor:
    import torch

    from foretune.tasks.numerics.factored import dense

    if delta is None:
        return tensor
    if tuple(delta.shape) != tuple(tensor.shape):
        raise ValueError(f"{key} is {list(tensor.shape)} in the base model, its delta is {list(delta.shape)}")
    wide = torch.promote_types(tensor.dtype, torch.float32)
    merged = (tensor.to(wide) + dense(delta).to("cpu", wide)).to(tensor.dtype)
    if not all_finite(merged):
        raise BrokenInvariant(
            f"checkpoint: {key} plus its delta is not finite in {tensor.dtype}; "
            "lower the learning rate or the clip of the delta"
        )
    return merged


def _shards(layout: dict[str, Stored], max_shard_size: str) -> dict[str, list[str]]:
    """File name -> keys, in groups of at most `max_shard_size`; a larger tensor has a file of its own."""
    number, unit = re.fullmatch(r"(\d+)(KB|MB|GB)", max_shard_size).groups()  # pyright: ignore[reportOptionalMemberAccess]
    limit = int(number) * UNITS[unit]
    groups: list[list[str]] = []
    room = 0
    for key, form in layout.items():
        if not groups or form.bytes > room:
            groups.append([])
            room = limit
        groups[-1].append(key)
        room -= form.bytes
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{n:05d}-of-{len(groups):05d}.safetensors": keys for n, keys in enumerate(groups, start=1)}


def _write_shard(path: Path, tensors: dict[str, Tensor]) -> None:
    import torch
    from safetensors.torch import save_file

    # A pickled base may hold one tensor under two names; safetensors wants memory of its own for each.
    own = {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in tensors.items()}
    save_file(own, path, metadata={"format": "pt"})


def _write_index(out: Path, shards: dict[str, list[str]], layout: dict[str, Stored]) -> None:
    index = {
        "metadata": {"total_size": sum(form.bytes for form in layout.values())},
        "weight_map": {key: name for name, keys in shards.items() for key in keys},
    }
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


@dataclass(frozen=True)
class CheckpointCheck:
    """What was compared when a checkpoint was opened again."""

    tensors: int
    files: int  # configuration and tokenizer files, equal byte for byte
    largest_logit: float  # of the probe, in absolute value


def verify_checkpoint(
    folder: Path, base: Path, settings: ModelSettings | None = None, probe_ids: list[int] | None = None
) -> CheckpointCheck:
    """Open a written checkpoint again and hold it against its base.

    Same keys, dtypes and shapes, same configuration and tokenizer files, finite logits on one row of
    `probe_ids` (default: 16 ids from the vocabulary). Raises BrokenInvariant with the first difference.
    """
    layout = StoredWeights(folder).layout()
    _same_layout(layout, StoredWeights(base).layout())
    files = [file.relative_to(base) for file in companion_files(base)]
    for name in files:
        if not (folder / name).is_file() or file_digest(folder / name) != file_digest(base / name):
            raise BrokenInvariant(f"checkpoint {folder}: {name} is not the base model's; write it again")
    loaded = load_model(folder, settings or ModelSettings(name_or_path=str(folder)))
    return CheckpointCheck(len(layout), len(files), _largest_logit(folder, loaded, probe_ids))


def _same_layout(layout: dict[str, Stored], wanted: dict[str, Stored]) -> None:
    for key in sorted(layout.keys() | wanted.keys()):
        if layout.get(key) != wanted.get(key):
            raise BrokenInvariant(
                f"checkpoint: {key} is {layout.get(key, 'absent')}, in the base model "
                f"{wanted.get(key, 'absent')}; write it again"
            )


def _largest_logit(folder: Path, loaded: LoadedModel, probe_ids: list[int] | None) -> float:
    import torch

    vocabulary = loaded.model.get_input_embeddings().weight.shape[0]  # pyright: ignore[reportIndexIssue]
    ids = torch.tensor(
        [probe_ids or [n * vocabulary // PROBE_TOKENS for n in range(PROBE_TOKENS)]], device=loaded.device
    )
    with torch.no_grad():
        logits = loaded.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    if not all_finite(logits):
        raise BrokenInvariant(f"checkpoint {folder}: its logits are not finite; lower the clip of the delta")
    return float(logits.abs().max())
