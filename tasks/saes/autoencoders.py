"""Sparse autoencoders: opened frozen, whatever library trained them, and read at their hook point."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretune.storage.errors import BadInput
from foretune.tasks.loading import all_finite, building, choose_device, refuse_foreign_code
from foretune.tasks.loading.foreign import reading
from foretune.tasks.saes.settings import SaeSettings
from foretune.tasks.saes.sources import SaeConfig, misfit, read_sae_config, sae_fingerprint
from foretune.tasks.saes.sparsify import load_sparsify

if TYPE_CHECKING:
    import torch
    from torch import Tensor

UNFOLDED = ("expected_average_only_in", "covariance_whitening")
"""Normalisations with constants that sae-lens folds into the weights before it saves an SAE for use."""


@dataclass(frozen=True, eq=False)
class LoadedSae:
    """A frozen SAE at its hook point. Features are counted from 0 to d_sae - 1."""

    coder: Any  # encodes and decodes: sae_lens.SAE or SparsifySae
    config: SaeConfig
    W_dec: Tensor  # [d_sae, d_in] what one unit of a feature adds to the reconstruction; on the CPU, float32
    device: torch.device

    @property
    def d_in(self) -> int:
        return self.config.d_in

    @property
    def d_sae(self) -> int:
        return self.config.d_sae

    @property
    def hook_name(self) -> str:
        return self.config.hook_name

    def target(self, resid: Tensor) -> Tensor:
        """What `decode(encode(resid))` is meant to equal [*, d_in]: `resid`, centred where this SAE wants it.

        In float32 on the SAE's device. Raises BadInput when `resid` is not d_in wide.
        """
        if resid.shape[-1] != self.d_in:
            raise misfit(self.d_in, resid.shape[-1], self.hook_name)
        resid = resid.to(self.device).float()
        return resid - resid.mean(dim=-1, keepdim=True) if self.config.centred else resid

    def encode(self, resid: Tensor) -> Tensor:
        """Feature activations [*, d_sae] of the model's activations [*, d_in]."""
        return self.coder.encode(self.target(resid))

    def decode(self, acts: Tensor) -> Tensor:
        """Reconstructions [*, d_in] of the activations that `encode` gave last."""
        return self.coder.decode(acts)


_opened = threading.local()


def load_sae(settings: SaeSettings, path: Path) -> LoadedSae:
    """Open the SAE that `resolve_sae` found at `path`; see `load_saes`."""
    return load_saes([(settings, path)])[0]


def load_saes(places: Sequence[tuple[SaeSettings, Path]]) -> list[LoadedSae]:
    """Open the SAEs that `resolve_sae` found; each thread keeps open those that it opened together last.

    Some coders of sae-lens remember the last batch between encode and decode, so threads do not share them.
    Raises BadInput for what is no supported SAE, for what this machine forbids, and for NaN weights.
    """
    for settings, _ in places:
        refuse_foreign_code("sae", settings)
    keys = [(settings, sae_fingerprint(path)) for settings, path in places]
    kept: dict[tuple[SaeSettings, str], LoadedSae] = getattr(_opened, "saes", {})
    if not kept.keys() >= set(keys):
        _opened.saes = kept = {key: sae for key, sae in kept.items() if key in keys}  # others make room first
        for key, (settings, path) in zip(keys, places, strict=True):
            if key not in kept:
                with building:  # a model that another thread builds would have the SAE's tensors made without data
                    kept[key] = _open(settings, path)
    return [kept[key] for key in keys]


def _open(settings: SaeSettings, path: Path) -> LoadedSae:
    config = read_sae_config(settings, path)
    device = choose_device(settings.device)
    if config.format == "sparsify":
        coder: Any = load_sparsify(path, device)
        directions = coder.W_dec
    else:
        coder = _sae_lens(settings, path, device)
        directions = _directions(coder)
    _refuse_non_finite(path, coder)
    if tuple(directions.shape) != (config.d_sae, config.d_in):
        raise BadInput(
            f"sae {path}: its decoder is {list(directions.shape)}, cfg.json says "
            f"{[config.d_sae, config.d_in]}; give the cfg.json that belongs to these weights"
        )
    return LoadedSae(coder, config, directions.detach().float().cpu(), device)


def _sae_lens(settings: SaeSettings, path: Path, device: torch.device) -> Any:
    from sae_lens import SAE

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on loading the model with TransformerLens
        with reading(f"sae {path}: sae-lens cannot open it, it", "give another SAE or copy the folder again"):
            if settings.release is not None:
                sae = SAE.from_pretrained(settings.release, settings.sae_id, device=str(device))  # pyright: ignore[reportArgumentType]
            else:
                sae = SAE.load_from_disk(path, device=str(device), dtype="float32")
    if sae.cfg.normalize_activations in UNFOLDED:
        raise BadInput(
            f"sae {path}: its {sae.cfg.normalize_activations} is not folded into the weights; "
            "fold it with sae-lens and save the SAE again"
        )
    # Our activations at attn.hook_z come with the heads side by side, as the weights take them.
    sae.turn_off_forward_pass_hook_z_reshaping()
    return sae.eval().requires_grad_(False)


def _directions(sae: Any) -> Tensor:
    """The decoder rows [d_sae, d_in] as `decode` uses them: TopK SAEs may divide each by its norm."""
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        return sae.W_dec / sae.W_dec.norm(dim=-1, keepdim=True)
    return sae.W_dec


def _refuse_non_finite(path: Path, coder: Any) -> None:
    import torch

    tensors = dict(coder.named_parameters()) if isinstance(coder, torch.nn.Module) else vars(coder)
    for name, tensor in tensors.items():
        if isinstance(tensor, torch.Tensor) and not all_finite(tensor):
            raise BadInput(f"sae {path}: tensor {name} has NaN or infinite values; copy the folder again")
