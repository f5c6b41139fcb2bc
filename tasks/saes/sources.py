"""SAE folders: where they lie, what stands for them, what their configuration says. No torch, no sae-lens."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from foretune.storage.digests import digest_of, file_digest, folder_digest
from foretune.storage.errors import BadInput
from foretune.storage.places import localise
from foretune.tasks.loading import model_outline
from foretune.tasks.loading.hooks import WIDTH_OF_RESIDUAL, parse_block_hook
from foretune.tasks.loading.hub import hub_snapshot
from foretune.tasks.saes.releases import find_release
from foretune.tasks.saes.settings import SaeSettings

WEIGHTS = {"sae_weights.safetensors": "sae_lens", "sae.safetensors": "sparsify"}
UNSUPPORTED = ("transcoder", "temporal")
"""Parts of architecture names: these do not rebuild the activations that they read, or need a whole text."""


def resolve_sae(settings: SaeSettings) -> Path:
    """Local folder of the SAE, or local file for releases that keep one file an SAE.

    Raises BadInput for what is not there, is not an SAE, or is pickled and not allowed.
    """
    if settings.path is not None:
        folder = localise(settings.path)
        if not folder.is_dir():
            raise BadInput(f"sae {folder}: a file; give the folder that holds cfg.json and the weights")
        _format(folder)
        return folder
    released = find_release(settings.release, settings.sae_id)
    if released.pickled and not settings.allow_pickle:
        raise BadInput(
            f"sae.release {settings.release}: its weights are pickled, and opening a pickle can "
            "run code; choose another release, or set sae.allow_pickle: true if you trust it"
        )
    patterns = [released.path, f"{released.path}/*"]
    found = hub_snapshot(released.repo_id, None, patterns, "sae.release") / released.path
    if not found.exists():
        raise BadInput(f"sae.sae_id {settings.sae_id}: {released.repo_id} has no {released.path}; check it")
    return found


def sae_fingerprint(path: Path) -> str:
    """Digest (64 hex digits) of an SAE's folder or file: names and contents."""
    return digest_of({path.name: file_digest(path)}) if path.is_file() else folder_digest(path)


@dataclass(frozen=True)
class SaeConfig:
    """What is known of an SAE before its weights are read."""

    format: Literal["sae_lens", "sparsify"]
    d_in: int
    d_sae: int
    hook_name: str
    centred: bool  # each token's mean over d_in is subtracted before encoding
    neuronpedia_id: str | None


def read_sae_config(settings: SaeSettings, path: Path) -> SaeConfig:
    """Shape and hook point of the SAE at `path`, as `resolve_sae` found it; the settings come first.

    Only releases in a format of their own import sae-lens. Raises BadInput where no hook point is known, and
    for autoencoders whose features cannot be read this way (transcoders, skip connections).
    """
    kind = _format(path) if settings.path is not None or (path / "sae.safetensors").is_file() else "sae_lens"
    raw = _raw_config(settings, path)
    if kind == "sparsify":
        _refuse_sparsify_variants(path, raw)
        hook = settings.hook_name or _sparsify_hook(path)
        metadata: dict[str, Any] = {}
        d_sae = raw.get("num_latents") or raw["d_in"] * raw["expansion_factor"]
    else:
        _refuse_sae_lens_variants(path, raw)
        metadata = {**raw, **raw.get("metadata", {})}
        hook = settings.hook_name or metadata.get("hook_name") or metadata.get("hook_point")
        d_sae = raw["d_sae"]
    if hook is None:
        raise BadInput(f"sae {path}: its configuration names no hook point; set sae.hook_name")
    trained_centred = bool((metadata.get("model_from_pretrained_kwargs") or {}).get("center_writing_weights"))
    return SaeConfig(
        format=kind,
        d_in=raw["d_in"],
        d_sae=d_sae,
        hook_name=hook,
        centred=trained_centred if settings.centre == "auto" else settings.centre == "on",
        neuronpedia_id=settings.neuronpedia_id or metadata.get("neuronpedia_id"),
    )


def _format(folder: Path) -> Literal["sae_lens", "sparsify"]:
    if (folder / "cfg.json").is_file():
        for name, kind in WEIGHTS.items():
            if (folder / name).is_file():
                return kind  # pyright: ignore[reportReturnType]
    below = sorted(cfg.parent.name for cfg in folder.glob("*/cfg.json"))
    if below:
        raise BadInput(f"sae {folder}: a folder of {len(below)} SAEs; name one, for example {below[0]}")
    raise BadInput(f"sae {folder}: no SAE; it needs cfg.json and one of {', '.join(WEIGHTS)}")


def _raw_config(settings: SaeSettings, path: Path) -> dict[str, Any]:
    released = find_release(settings.release, settings.sae_id) if settings.release else None
    if settings.release and settings.sae_id and released is not None and released.conversion is not None:
        from sae_lens.loading.pretrained_sae_loaders import load_sae_config_from_huggingface

        return load_sae_config_from_huggingface(settings.release, settings.sae_id)
    try:
        raw = json.loads((path / "cfg.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"sae {path}: cfg.json cannot be read ({error}); copy the folder again") from None
    if not isinstance(raw.get("d_in"), int):
        raise BadInput(f"sae {path}: cfg.json does not say d_in; give the one that belongs to the weights")
    if released is not None:
        raw |= released.overrides | {"neuronpedia_id": released.neuronpedia_id}
    return raw


def _sparsify_hook(folder: Path) -> str | None:
    """sparsify names the folder after the module, relative to the base model: `layers.10`, `h.3.mlp`."""
    return folder.name if re.fullmatch(r"(layers|h|blocks|block)[._]\d+(\..+)?", folder.name) else None


def _refuse_sparsify_variants(path: Path, raw: dict[str, Any]) -> None:
    for name in ("transcode", "skip_connection", "embed_skip", "gram_lookup"):
        if raw.get(name):
            raise BadInput(
                f"sae {path}: trained with {name}, so it does not rebuild the activations that it "
                "reads from its features alone; give a plain SAE"
            )


def _refuse_sae_lens_variants(path: Path, raw: dict[str, Any]) -> None:
    architecture = str(raw.get("architecture", "standard"))
    if any(part in architecture for part in UNSUPPORTED):
        raise BadInput(f"sae {path}: a {architecture}; give an SAE of one place in the model")


def check_fit(sae: SaeConfig, model_folder: Path) -> None:
    """Hold the SAE's hook point and width against the model's config.json, before anything is computed.

    Raises BadInput for a layer that the model lacks, an unknown block hook, and a width that differs (both
    numbers). Module paths and other widths are checked when the model runs.
    """
    block, outline = parse_block_hook(sae.hook_name), model_outline(model_folder)
    if block is None or outline is None:
        return
    layer, hook = block
    if layer >= outline.layers:
        raise BadInput(
            f"sae hook {sae.hook_name}: the model has {outline.layers} layers; "
            f"the nearest is blocks.{outline.layers - 1}.{hook}"
        )
    if hook in WIDTH_OF_RESIDUAL and sae.d_in != outline.d_model:
        raise misfit(sae.d_in, outline.d_model, sae.hook_name)


def misfit(d_in: int, width: int, hook_name: str) -> BadInput:
    """The error for an SAE that does not fit the activations it is given."""
    return BadInput(
        f"sae: its d_in is {d_in}, the model's activations at {hook_name} are {width} wide; "
        "give the SAE of this model and hook"
    )
