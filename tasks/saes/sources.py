"""SAE folders: where they lie, what stands for them, what their configuration says. No torch, no sae-lens."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from foretune.storage.digests import digest_of, file_digest
from foretune.storage.disk import hidden
from foretune.storage.errors import BadInput
from foretune.storage.places import localise
from foretune.tasks.loading import model_config, model_outline
from foretune.tasks.loading.files import contained, digest_by_name
from foretune.tasks.loading.foreign import Foreign, checked, read_json, reading
from foretune.tasks.loading.headers import FLOATS, stored_tensors
from foretune.tasks.loading.hooks import WIDTH_OF_RESIDUAL, parse_block_hook
from foretune.tasks.loading.hub import hub_snapshot
from foretune.tasks.saes.releases import find_release
from foretune.tasks.saes.settings import SaeSettings

WEIGHTS = {"sae_weights.safetensors": "sae_lens", "sae.safetensors": "sparsify"}
CENTRED_BY_TRANSFORMERLENS = ("gpt2", "gpt_neo", "gptj", "gpt_neox", "opt", "bloom")
"""Families with LayerNorm, whose writing weights TransformerLens centres unless told not to; RMSNorm forbids it."""
UNSUPPORTED = ("transcoder", "crosscoder", "temporal", "clt")
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
    return digest_of({path.name: file_digest(path)}) if path.is_file() else digest_by_name(path, sae_files(path))


def sae_files(folder: Path) -> list[Path]:
    """The files of an SAE's folder; dotted names (download caches) are none of it. BadInput for links that leave it."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return [contained(folder / name, folder, what="sae") for name in names if not hidden(name)]


@dataclass(frozen=True)
class SaeConfig:
    """What is known of an SAE before its weights are read."""

    format: Literal["sae_lens", "sparsify"]
    d_in: int
    d_sae: int
    hook_name: str
    centred: bool  # each token's mean over d_in is subtracted before encoding
    neuronpedia_id: str | None
    centring_unknown: bool = False  # an early format that does not say whether it was trained on centred weights


GEMMA_SCOPE = (
    "Gemma Scope's own format (params.npz); set sae.release to sae-lens's name of it, such as "
    "gemma-scope-2b-pt-res-canonical, and sae.sae_id, such as layer_20/width_16k/canonical"
)
Size = Annotated[int, Field(ge=1, le=2**31)]


class _SaeLens(Foreign):
    """What is read of sae-lens's cfg.json, at its top level or under `metadata`."""

    architecture: str | None = None
    d_in: Size | None = None
    d_sae: Size | None = None
    d_out: Size | None = None
    hook_name: str | None = None
    hook_point: str | None = None
    hook_name_out: str | None = None
    out_hook_point: str | None = None
    is_transcoder: bool | None = None
    neuronpedia_id: str | None = None
    sae_lens_version: str | None = None
    model_from_pretrained_kwargs: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None


class _Sparsify(Foreign):
    """What is read of sparsify's cfg.json."""

    d_in: Size
    num_latents: Annotated[int, Field(ge=0, le=2**31)] | None = None
    expansion_factor: Size | None = None
    k: Size = 32
    activation: str = "topk"
    signed: bool = False
    transcode: bool = False
    skip_connection: bool = False


def read_sae_config(settings: SaeSettings, path: Path) -> SaeConfig:
    """Shape and hook point of the SAE at `path`, as `resolve_sae` found it; the settings come first.

    Only releases in a format of their own import sae-lens. Raises BadInput where no hook point is known, and
    for autoencoders whose features cannot be read this way (transcoders, skip connections).
    """
    kind = _format(path) if settings.path is not None or (path / "sae.safetensors").is_file() else "sae_lens"
    raw = _raw_config(settings, path, kind)
    early = False
    metadata: dict[str, Any] = {}
    if kind == "sparsify":
        _refuse_sparsify_variants(path, raw)
        hook = settings.hook_name or _sparsify_hook(path)
        d_sae = raw.get("num_latents") or raw["d_in"] * (raw.get("expansion_factor") or 0)
    else:
        metadata = {**raw, **(raw.get("metadata") or {})}
        checked(_SaeLens, metadata, path / "cfg.json")
        _refuse_sae_lens_variants(path, metadata)
        hook = settings.hook_name or metadata.get("hook_name") or metadata.get("hook_point")
        d_sae = raw.get("d_sae")
        early = "sae_lens_version" not in metadata and metadata.get("model_from_pretrained_kwargs") is None
    if hook is None:
        raise BadInput(f"sae {path}: its configuration names no hook point; set sae.hook_name")
    if not d_sae:
        raise BadInput(f"sae {path}: cfg.json does not say d_sae; give the one that belongs to the weights")
    trained_centred = bool((metadata.get("model_from_pretrained_kwargs") or {}).get("center_writing_weights"))
    return SaeConfig(
        format=kind,
        d_in=raw["d_in"],
        d_sae=d_sae,
        hook_name=hook,
        centred=trained_centred if settings.centre == "auto" else settings.centre == "on",
        neuronpedia_id=settings.neuronpedia_id or metadata.get("neuronpedia_id"),
        centring_unknown=early and settings.path is not None and settings.centre == "auto",
    )


def check_weights(sae: SaeConfig, path: Path) -> None:
    """Hold the header of the weights against the configuration, where they are a safetensors file of their own.

    Raises BadInput for a header that lies, for quantised tensors, and for a decoder of another shape.
    """
    file = path / next(name for name, each in WEIGHTS.items() if each == sae.format)
    if not path.is_dir() or not file.exists():
        return
    stored = stored_tensors(contained(file, path, what="sae"))
    for name, form in stored.items():
        if form.dtype not in FLOATS:
            raise BadInput(f"sae {path}: tensor {name[:80]} is stored as {form.dtype}; give the SAE in a float dtype")
    decoder = stored.get("W_dec")
    if decoder is not None and decoder.shape != (sae.d_sae, sae.d_in):
        raise BadInput(
            f"sae {path}: its decoder is {list(decoder.shape)}, cfg.json says "
            f"{[sae.d_sae, sae.d_in]}; give the cfg.json that belongs to these weights"
        )


def _format(folder: Path) -> Literal["sae_lens", "sparsify"]:
    if (folder / "cfg.json").is_file():
        for name, kind in WEIGHTS.items():
            if (folder / name).is_file():
                return kind  # pyright: ignore[reportReturnType]
    below = sorted(cfg.parent.name for cfg in folder.glob("*/cfg.json"))
    if below:
        raise BadInput(f"sae {folder}: a folder of {len(below)} SAEs; name one, for example {below[0]}")
    if (folder / "params.npz").is_file():
        raise BadInput(f"sae {folder}: {GEMMA_SCOPE}")
    raise BadInput(f"sae {folder}: no SAE; it needs cfg.json and one of {', '.join(WEIGHTS)}")


def _raw_config(settings: SaeSettings, path: Path, kind: str) -> dict[str, Any]:
    released = find_release(settings.release, settings.sae_id) if settings.release else None
    if settings.release and settings.sae_id and released is not None and released.conversion is not None:
        from sae_lens.loading.pretrained_sae_loaders import load_sae_config_from_huggingface

        with reading(f"sae.release {settings.release}", "check the release, or give sae.path"):
            return load_sae_config_from_huggingface(settings.release, settings.sae_id)
    if not path.is_dir() or not (path / "cfg.json").exists():
        if "gemma-scope" in (settings.release or "") or (path / "params.npz").exists():
            raise BadInput(f"sae {settings.release or path}: {GEMMA_SCOPE}")
        raise BadInput(f"sae {path}: no cfg.json; copy the folder again")
    config = contained(path / "cfg.json", path, what="sae")
    raw = read_json(config)
    if raw.get("d_in") is None:
        raise BadInput(f"sae {path}: cfg.json does not say d_in; give the one that belongs to the weights")
    checked(_Sparsify if kind == "sparsify" else _SaeLens, raw, config)
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
    architecture = str(raw.get("architecture") or "standard")
    if any(part in architecture for part in UNSUPPORTED):
        raise BadInput(f"sae {path}: a {architecture}; give an SAE of one place in the model")
    if models := next((raw[name] for name in ("n_models", "num_models") if raw.get(name)), None):
        raise BadInput(f"sae {path}: a crosscoder of {models} models; give an SAE of one place in the model")
    # Early transcoders name no architecture of their own, but another place that they write to.
    read, written = raw.get("hook_name") or raw.get("hook_point"), raw.get("hook_name_out") or raw.get("out_hook_point")
    width = raw.get("d_out") or raw.get("d_in")
    if raw.get("is_transcoder") or (written and written != read) or width != raw.get("d_in"):
        raise BadInput(f"sae {path}: a transcoder ({read} to {written}); give an SAE of one place in the model")


def check_fit(sae: SaeConfig, model_folder: Path) -> None:
    """Hold the SAE's hook point and width against the model's config.json, before anything is computed.

    Raises BadInput for a layer that the model lacks, an unknown block hook, and a width that differs (both
    numbers). Module paths and other widths are checked when the model runs.
    """
    if sae.centring_unknown and model_config(model_folder).model_type in CENTRED_BY_TRANSFORMERLENS:
        raise BadInput(
            "sae: its cfg.json is of an early sae-lens and does not say whether the model's weights were centred "
            "(center_writing_weights), as they were by default; set sae.centre to on or off"
        )
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
