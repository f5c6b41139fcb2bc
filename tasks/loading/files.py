"""Which files a model consists of. Whatever digests, opens, copies, verifies or fetches a model asks here.

Nothing here imports torch or transformers.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foretune.storage.digests import digest_of, file_digest
from foretune.storage.errors import BadInput
from foretune.storage.parts import fits
from foretune.storage.places import safe_name
from foretune.tasks.loading.foreign import Foreign, checked, is_plain, read_json
from foretune.tasks.loading.headers import Stored, stored_tensors

SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
PICKLE = ("pytorch_model.bin", "pytorch_model.bin.index.json")
OTHER_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.gguf", "*.npz")
COMPANIONS = (
    "config.json",
    "generation_config.json",
    "chat_template*",
    "additional_chat_templates/*.jinja",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "*.py",
)
"""What a model folder holds beside its weights: configuration, tokenizer, templates, and code if it brings its own."""

REDIRECTS = (
    ("config.json", "transformers_weights", SAFETENSORS),
    ("config.json", "configuration_files", ("config.json",)),
    ("tokenizer_config.json", "fast_tokenizer_files", ("tokenizer.json",)),
)
"""Fields by which transformers opens other files than the usual ones. (What tokenizer_config.json says of vocab_file,
merges_file and tokenizer_file it does not open.)"""


@dataclass(frozen=True)
class ModelFiles:
    """All files of a model folder, each sorted by name. No other file of the folder, and none outside, is opened."""

    folder: Path
    weights: tuple[Path, ...]
    companions: tuple[Path, ...]

    @property
    def pickled(self) -> bool:
        return self.weights[0].suffix == ".bin"

    @property
    def digest(self) -> str:
        """64 hex digits over names and contents."""
        return digest_by_name(self.folder, (*self.weights, *self.companions))

    def layout(self) -> dict[str, Stored]:
        """Name -> form of every tensor in safetensors files; empty for pickles, whose tensors only torch can read.

        Raises BadInput for a tensor that two files hold, and where the index says otherwise than the files.
        """
        return {} if self.pickled else _layout(self.folder, self.weights)


def digest_by_name(folder: Path, files: Iterable[Path]) -> str:
    """Digest of files under their names relative to the folder."""
    return digest_of({path.relative_to(folder).as_posix(): file_digest(path) for path in files})


def model_files(folder: Path, allow_pickle: bool = False) -> ModelFiles:
    """The files of a model folder; safetensors where there are any.

    Raises BadInput for a folder without weights, with pickled weights only, with a missing shard, with an index or a
    configuration that names files elsewhere or of another format, with links that leave it, and with an adapter.
    """
    companions = companion_files(folder)
    _refuse_redirects(folder)
    weights = _weights_named(folder, *SAFETENSORS)
    if not weights:
        weights = _weights_named(folder, *PICKLE)
        if not weights:
            raise _no_weights(folder)
        if not allow_pickle:
            raise BadInput(
                f"model {folder}: its weights are pickled ({weights[0].name}), and opening a pickle can run "
                "code; convert them to safetensors, or set model.allow_pickle: true if you trust them"
            )
    if (folder / "adapter_config.json").exists():
        raise BadInput(
            f"model {folder}: holds a whole model and an adapter, which transformers would put on top of it; "
            "remove adapter_config.json, or give a folder without it"
        )
    return ModelFiles(folder, tuple(weights), tuple(companions))


def companion_files(folder: Path) -> list[Path]:
    """Configuration and tokenizer files, sorted by name. BadInput for links that leave the folder."""
    found = sorted(
        (path for pattern in COMPANIONS for path in _matching(folder, pattern) if not path.is_dir()),
        key=lambda path: path.relative_to(folder).as_posix(),
    )
    found = list(dict.fromkeys(found))
    seen: dict[str, str] = {}
    for path in found:
        contained(path, folder)
        name = path.relative_to(folder).as_posix()
        if (other := seen.setdefault(name.lower(), name)) != name:
            raise BadInput(f"model {folder}: {other} and {name} differ in case alone; keep one of them")
    return found


def is_companion(name: str) -> bool:
    """Whether a file of this name below a model folder is configuration or tokenizer, and no weights."""
    return any(fits(name, pattern) for pattern in COMPANIONS)


def _matching(folder: Path, pattern: str) -> list[Path]:
    below, _, name = pattern.rpartition("/")
    inside = folder / below
    if not inside.is_dir():
        return []
    if inside.is_symlink() and below:
        contained(inside, folder, plain=False)
    return [path for path in inside.iterdir() if fnmatch.fnmatchcase(path.name, name)]


def contained(path: Path, folder: Path, plain: bool = True, what: str = "model") -> Path:
    """`path`, which lies in `folder`: itself, or by links inside it or into the hub cache that holds the folder.

    Raises BadInput for a link that leads elsewhere or nowhere, and for what is no plain file.
    """
    try:
        real, home = path.resolve(strict=True), folder.resolve(strict=True)
    except (OSError, RuntimeError):
        raise BadInput(f"{what} {folder}: {path.name} is a link to nothing; copy the folder again") from None
    blobs = _hub_blobs(home)
    if not real.is_relative_to(home) and not (blobs and real.parent == blobs):
        raise BadInput(
            f"{what} {folder}: {path.name} is a link to a file elsewhere ({real}), which would not be noticed when "
            "it changes; copy the file into the folder"
        )
    if plain and not is_plain(real):
        raise BadInput(f"{what} {folder}: {path.name} is not a plain file; copy the folder again")
    return path


def _hub_blobs(home: Path) -> Path | None:
    """Where the hub cache keeps the contents of models--OWNER--NAME/snapshots/REVISION[/FOLDER]."""
    for parent in home.parents:
        if parent.name == "snapshots" and parent.parent.name.startswith("models--"):
            return parent.parent / "blobs"
    return None


class _Index(Foreign):
    weight_map: dict[str, str]


def index_map(folder: Path, index: str) -> dict[str, str]:
    """Tensor -> file of an index, every file of the index's own format and in the folder."""
    path, suffix = folder / index, ".bin" if index in PICKLE else ".safetensors"
    named = checked(_Index, read_json(contained(path, folder)), path).weight_map
    if not named:
        raise BadInput(f"{path}: weight_map names no file; copy the file again")
    for name in sorted(set(named.values())):
        if not safe_name(name) or "\\" in name or not name.endswith(suffix):
            raise BadInput(
                f"{path}: weight_map names {name[:120]}, which is not a {suffix} file in this folder; "
                "copy the folder again"
            )
    return named


def _weights_named(folder: Path, single: str, index: str) -> list[Path]:
    if _there(folder / single):
        return [contained(folder / single, folder)]
    if not _there(folder / index):
        return []
    names = sorted(set(index_map(folder, index).values()))
    missing = [name for name in names if not _there(folder / name)]
    if missing:
        raise BadInput(
            f"model {folder}: {len(missing)} of {len(names)} weight files are missing, first "
            f"{missing[0]}; copy the folder again"
        )
    return [contained(folder / name, folder) for name in names]


def _there(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _no_weights(folder: Path) -> BadInput:
    others = sorted(
        path.name for path in folder.iterdir() if any(fnmatch.fnmatch(path.name, kind) for kind in OTHER_WEIGHTS)
    )
    beside = f" ({', '.join(others[:3])} is not read)" if others else ""
    return BadInput(
        f"model {folder}: the folder holds no weights; it needs model.safetensors or shards with their index{beside}"
    )


def _refuse_redirects(folder: Path) -> None:
    configs = {name: read_json(folder / name) for name, _, _ in REDIRECTS if (folder / name).is_file()}
    for name, field, usual in REDIRECTS:
        value = configs.get(name, {}).get(field)
        if value and not (value in usual if isinstance(value, str) else value == list(usual)):
            raise BadInput(
                f"{folder / name}: {field} has {str(value)[:80]} opened instead of the usual file; "
                f"remove {field} and give the file its usual name"
            )
    for name, config in configs.items():
        if elsewhere := [code for code in _code_named(config.get("auto_map")) if "--" in code]:
            raise BadInput(
                f"{folder / name}: auto_map names code of another repository ({elsewhere[0][:80]}); "
                "copy that code into the folder and name it there"
            )


def _code_named(value: Any) -> list[str]:
    """The texts in auto_map, a text, list or object of texts."""
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [code for part in parts for code in _code_named(part)]


def _layout(folder: Path, weights: tuple[Path, ...]) -> dict[str, Stored]:
    found: dict[str, Stored] = {}
    holder: dict[str, str] = {}
    for path in weights:
        name = path.relative_to(folder).as_posix()
        for tensor, form in stored_tensors(path).items():
            if tensor in found:
                raise BadInput(f"model {folder}: {holder[tensor]} and {name} both hold {tensor}; copy the folder again")
            found[tensor], holder[tensor] = form, name
    if not _there(folder / SAFETENSORS[0]):
        named = index_map(folder, SAFETENSORS[1])
        for tensor in sorted(named.keys() | holder.keys()):
            if named.get(tensor) != holder.get(tensor):
                raise BadInput(
                    f"model {folder}: {SAFETENSORS[1]} puts {tensor[:120]} in {named.get(tensor, 'no file')}, it is in "
                    f"{holder.get(tensor, 'none of its files')}; copy the folder again"
                )
    return dict(sorted(found.items()))
