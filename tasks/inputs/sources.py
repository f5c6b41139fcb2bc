"""What a request points at, fingerprinted before anything runs; every fault found here is bad input.

Nothing here imports torch: a run whose passes are all cached never does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foretune.storage.datasets import dataset_at, dataset_digest
from foretune.storage.digests import digest_of, file_digest, folder_digest
from foretune.storage.errors import BadInput
from foretune.storage.parts import VALIDATION
from foretune.storage.places import localise
from foretune.storage.refs import ArtifactRef
from foretune.tasks.engine.keys import Fingerprint
from foretune.tasks.inputs.handles import ModelHandle, SaeHandle
from foretune.tasks.loading import (
    AdapterTargets,
    ModelSettings,
    check_gguf,
    check_model,
    model_fingerprint,
    refuse_foreign_code,
    resolve_model,
    tokenizer_fingerprint,
)
from foretune.tasks.loading.folders import model_outline
from foretune.tasks.saes import (
    AUTO,
    SaeSettings,
    check_fit,
    check_weights,
    chosen_sae,
    read_sae_config,
    resolve_sae,
    sae_fingerprint,
)
from foretune.tasks.samples.table import DatasetSettings
from foretune.tasks.samples.unread import unread_splits


@dataclass(frozen=True)
class SaeSource:
    """An SAE that a request reads: where it lies, at which hook, and under which name people know it."""

    handle: SaeHandle
    labels: Fingerprint | None
    hook_name: str
    name: str


@dataclass(frozen=True)
class Sources:
    """Every input of a simulation outside the storage root."""

    rows: dict[str, Fingerprint]  # role -> file
    gguf: Fingerprint | None  # a model file that must be converted first
    model: Fingerprint | None  # or a folder in Hugging Face's format
    tokenizer: Fingerprint | None  # of that folder
    sae: SaeHandle | None
    labels: Fingerprint | None
    hook_name: str | None
    benchmarks: tuple[Fingerprint, ...] = ()  # files that no training row should come from
    prompts: Fingerprint | None = None  # that both models are asked
    unread_splits: tuple[str, ...] = ()  # beside the training rows
    sae_name: str = ""
    sae_notes: tuple[str, ...] = ()  # which SAE was chosen where the request left it open, or that there is none
    more_saes: tuple[SaeSource, ...] = ()  # beside `sae`

    def named(self) -> dict[str, tuple[str, str]]:
        """Where every input lies, and the digest that stands for it, by what it is to the run."""
        others = {"model": self.model or self.gguf, "sae": self.sae and self.sae.source, "labels": self.labels}
        others["prompts"] = self.prompts
        others |= {f"SAE {each.name}": each.handle.source for each in self.more_saes}
        others |= {f"benchmark {each.uri.rsplit('/', 1)[-1]}": each for each in self.benchmarks}
        found = {**self.rows, **{role: each for role, each in others.items() if each is not None}}
        return {role: (each.uri, each.digest) for role, each in found.items()}

    @property
    def saes_read(self) -> dict[str, Any]:
        """Which SAEs are read, by name and hook point, and what was chosen: for result.json."""
        read = [] if self.sae is None else [{"name": self.sae_name, "hook": self.hook_name}]
        more = [{"name": each.name, "hook": each.hook_name} for each in self.more_saes]
        return {"saes": [*read, *more], "notes": list(self.sae_notes)}

    @property
    def sae_line(self) -> str:
        """The same for people; "" for a request that names no SAE."""
        named = [f"{each['name']} at {each['hook']}" for each in self.saes_read["saes"]]
        return "; ".join([*self.sae_notes, *([f"read: {', '.join(named)}"] if named else [])])

    def model_handle(self, convert: Callable[[Fingerprint], ArtifactRef], settings: ModelSettings) -> ModelHandle:
        """The model as the passes take it; `convert` makes a folder of a GGUF file."""
        return ModelHandle(source=self.model or convert(self.gguf), settings=settings)  # pyright: ignore[reportArgumentType]


def resolve_sources(
    dataset: DatasetSettings,
    model: ModelSettings,
    sae: SaeSettings | None,
    adapter: AdapterTargets | None = None,
    saes: Sequence[SaeSettings] = (),
) -> Sources:
    """Fetch what is remote, digest everything. Raises BadInput for whatever is missing or cannot be simulated.

    With `adapter`, the weights that it moves are looked for in the model too.
    """
    refuse_foreign_code("model", model)
    for each in (sae, *saes):
        refuse_foreign_code("sae", each)
    rows = {"train": _file(dataset_at(dataset.path))}
    held = dataset.heldout.path
    rows["heldout"] = _file(dataset_at(held, VALIDATION)) if held else rows["train"]
    if dataset.preferences:
        rows["preferences"] = _file(dataset_at(dataset.preferences))
    rows["probes"] = _text(dataset.probes) if dataset.probes else rows["heldout"]
    gguf = folder = tokenizer = local = None
    if _is_gguf(model):
        gguf = _text(model.name_or_path)
        check_gguf(localise(model.name_or_path))
    else:
        local = resolve_model(model)
        check_model(local, model, adapter)
        folder = Fingerprint(uri=str(local), digest=model_fingerprint(local))
        tokenizer = Fingerprint(uri=str(local), digest=tokenizer_fingerprint(local))
    notes: list[str] = []
    read = [_sae(each, model, local, notes) for each in (sae, *saes) if each is not None]
    first, *more = [each for each in read if each is not None] or [None]
    named = (first.handle, first.labels, first.hook_name) if first else (None, None, None)
    return Sources(
        rows,
        gguf,
        folder,
        tokenizer,
        *named,
        unread_splits=tuple(unread_splits(dataset)),
        sae_name=first.name if first else "",
        sae_notes=tuple(notes),
        more_saes=tuple(each for each in more if each is not None),
    )


def _sae(settings: SaeSettings, model: ModelSettings, folder: Path | None, notes: list[str]) -> SaeSource | None:
    """An SAE found, and held against the model in `folder`; None where one was to be chosen and there is none."""
    if settings.release == AUTO:
        chosen = chosen_sae(settings, model.name_or_path, model_outline(folder) if folder else None)
        where = f" at {settings.hook_name}" if settings.hook_name else ""
        if chosen is None:
            notes.append(
                f"sae auto: sae-lens's directory has no SAE of {model.name_or_path}{where} that can be read; set "
                "sae.path or sae.release. The residual stream's own directions are read instead"
            )
            return None
        notes.append(f"sae auto: {chosen.words} is chosen for {model.name_or_path}")
        settings = settings.model_copy(update={"release": chosen.release, "sae_id": chosen.sae_id})
    at = resolve_sae(settings)
    handle = SaeHandle(source=Fingerprint(uri=str(at), digest=sae_fingerprint(at)), settings=settings)
    config = read_sae_config(settings, at)
    if folder is not None:
        check_fit(config, folder)
    check_weights(config, at)
    name = at.name if settings.release is None else f"{settings.release}/{settings.sae_id}"
    return SaeSource(handle, _labels(settings), config.hook_name, name)


def model_sources(model: ModelSettings) -> Sources:
    """The model alone. Raises BadInput where it is missing or runs code of its own."""
    refuse_foreign_code("model", model)
    if _is_gguf(model):
        return Sources({}, _text(model.name_or_path), None, None, None, None, None)
    local = resolve_model(model)
    folder = Fingerprint(uri=str(local), digest=model_fingerprint(local))
    return Sources({}, None, folder, Fingerprint(uri=str(local), digest=tokenizer_fingerprint(local)), None, None, None)


def _is_gguf(model: ModelSettings) -> bool:
    name = model.name_or_path
    return name.lower().endswith(".gguf") and not Path(name).expanduser().is_dir()


def benchmark_files(uris: Sequence[str]) -> tuple[Fingerprint, ...]:
    """Each by what its bytes are. BadInput for what is missing."""
    return tuple(_file(dataset_at(uri)) for uri in uris)


def prompt_file(uri: str | None) -> Fingerprint | None:
    """The file of prompts by its bytes; None without one. BadInput where it is missing."""
    return None if uri is None else _text(uri)


def _file(uri: str) -> Fingerprint:
    return Fingerprint(uri=uri, digest=dataset_digest(uri))


def _text(uri: str) -> Fingerprint:
    local = localise(uri)
    if local.is_dir():
        raise BadInput(f"{uri}: is a folder; give a file")
    return Fingerprint(uri=uri, digest=file_digest(local))


def _labels(sae: SaeSettings) -> Fingerprint | None:
    """The labels' file or folder, and which of its layers is read."""
    if sae.labels is None:
        return None
    local = localise(sae.labels)
    digest = folder_digest(local) if local.is_dir() else file_digest(local)
    return Fingerprint(uri=sae.labels, digest=digest_of([digest, sae.neuronpedia_id]) if sae.neuronpedia_id else digest)
