"""The base model and the SAE as inputs of a pass: what stands for them in keys, and how a pass opens them."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect.concurrency.sync import concurrency
from pydantic import BaseModel

from foretune.storage.places import localise
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.keys import NUMERICS, Fingerprint, identity
from foretune.tasks.engine.passes import content_task
from foretune.tasks.engine.time_limits import uncounted
from foretune.tasks.loading import ModelSettings, choose_device, close_models, convert_gguf, load_model
from foretune.tasks.loading.autocast import AUTOCAST
from foretune.tasks.loading.witnesses import witness
from foretune.tasks.saes import SaeSettings, load_sae, load_saes

if TYPE_CHECKING:
    from foretune.tasks.loading import LoadedModel
    from foretune.tasks.saes import LoadedSae

_device_locks: dict[str, threading.RLock] = {}
_registry = threading.Lock()
_split_models = threading.Lock()


class ModelHandle(BaseModel, frozen=True):
    """A model folder outside the root (fingerprint) or an artefact (converted GGUF, predicted checkpoint)."""

    source: Fingerprint | ArtifactRef
    settings: ModelSettings
    autocast: bool = False

    def identity(self) -> dict[str, Any]:
        return {
            "weights": identity(self.source),
            "dtype": self.settings.dtype,
            "attn_implementation": self.settings.attn_implementation,
            **({"autocast": True} if self.autocast else {}),
        }

    @property
    def token_price(self) -> float:
        """Of a token forward, in those that float32 takes."""
        return AUTOCAST if self.autocast else 1

    def in_bfloat16(self) -> ModelHandle:
        """The same weights, whose products are in bfloat16."""
        return self.model_copy(update={"autocast": True})

    def moved_to(self, checkpoint: ArtifactRef) -> ModelHandle:
        """The same settings over another set of weights."""
        return ModelHandle(source=checkpoint, settings=self.settings)

    def folder(self, run: Run) -> Path:
        """Local folder in Hugging Face's format."""
        if isinstance(self.source, ArtifactRef):
            return run.store.open(self.source).folder()
        return localise(self.source.uri)

    @contextlib.contextmanager
    def slot(self) -> Iterator[None]:
        """Held while a pass computes: a slot of the global concurrency limit `gpu` for a model on a GPU, without such
        a limit free; for a split model its turn, since layers that come and go cannot be shared by threads."""
        with contextlib.ExitStack() as held:
            if choose_device(self.settings.device).type == "cuda":
                held.enter_context(concurrency("gpu", occupy=1))
            if self.settings.device_map:
                held.enter_context(_split_models)
            yield

    def open(self, run: Run) -> LoadedModel:
        """The loaded model, one instance per process."""
        loaded = load_model(self.folder(run), self.settings)
        while not witness(run, loaded.model, loaded.digest):
            close_models()
            loaded = load_model(self.folder(run), self.settings)
        return dataclasses.replace(loaded, autocast=True) if self.autocast else loaded


class SaeHandle(BaseModel, frozen=True):
    """A sparse autoencoder on disk: its weights' digest and the hook point it reads."""

    source: Fingerprint
    settings: SaeSettings

    def identity(self) -> dict[str, Any]:
        read = self.settings.model_dump(include={"release", "sae_id", "hook_name", "centre"})
        return {"weights": identity(self.source), **read}

    def open(self) -> LoadedSae:
        return load_sae(self.settings, localise(self.source.uri))

    @property
    def each(self) -> tuple[SaeHandle, ...]:
        return (self,)

    @property
    def folders(self) -> tuple[str, ...]:
        """Where what is made of each SAE lies in an artefact."""
        return ("",)


class SaeHandles(BaseModel, frozen=True):
    """Several sparse autoencoders that a pass reads in one forward, the first of the request first."""

    each: tuple[SaeHandle, ...]

    def identity(self) -> list[dict[str, Any]]:
        return [handle.identity() for handle in self.each]

    @property
    def folders(self) -> tuple[str, ...]:
        """A folder per SAE, named by its place: what `sae_part` takes out."""
        return tuple(f"{place}/" for place in range(1, len(self.each) + 1))


def opened_saes(sae: SaeHandle | SaeHandles) -> list[LoadedSae]:
    """All of them, at once."""
    return load_saes([(handle.settings, localise(handle.source.uri)) for handle in sae.each])


@contextlib.contextmanager
def device_lock(loaded: LoadedModel) -> Iterator[None]:
    """Held while a heavy computation runs on the device: two at once would hold two sets of activations."""
    with _registry:
        lock = _device_locks.setdefault(str(loaded.device), threading.RLock())
    held = False
    try:
        with uncounted():
            held = lock.acquire()
        yield
    finally:
        if held:
            lock.release()


@content_task(version=2, libraries=(*NUMERICS, "gguf"))
def model(draft: Any, run: Run, gguf: Fingerprint, dtype: Any) -> None:
    """A GGUF file as a Hugging Face folder: sharded safetensors in `dtype`, config and tokenizer."""
    convert_gguf(localise(gguf.uri), draft.folder, dtype)
