"""Small SAEs on disk, in the formats of sae-lens and of sparsify."""

from __future__ import annotations

import json

import torch
from safetensors.torch import save_file

from foretune.tasks.saes import SaeSettings, load_sae, resolve_sae

D_IN, D_SAE, K = 32, 48, 5


def weights(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator)

    return {
        "W_enc": drawn(D_IN, D_SAE),
        "b_enc": 0.1 * drawn(D_SAE),
        "W_dec": drawn(D_SAE, D_IN),
        "b_dec": drawn(D_IN),
    }


def sae_lens_folder(folder, tensors=None, **config):
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"hook_name": "blocks.1.hook_resid_pre", "model_name": "tiny", "sae_lens_version": "6.0.0"}
    whole = {
        "architecture": "topk",
        "d_in": D_IN,
        "d_sae": D_SAE,
        "k": K,
        "dtype": "float32",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "rescale_acts_by_decoder_norm": False,
        "metadata": metadata,
    } | config
    (folder / "cfg.json").write_text(json.dumps(whole))
    save_file(tensors or weights(), folder / "sae_weights.safetensors")
    return folder


def sparsify_folder(folder, **config):
    folder.mkdir(parents=True, exist_ok=True)
    tensors = weights()
    whole = {
        "activation": "topk",
        "expansion_factor": 1,
        "normalize_decoder": True,
        "num_latents": D_SAE,
        "k": K,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": D_IN,
    } | config
    (folder / "cfg.json").write_text(json.dumps(whole))
    save_file(
        {
            "encoder.weight": tensors["W_enc"].T.contiguous(),
            "encoder.bias": tensors["b_enc"],
            "W_dec": tensors["W_dec"],
            "b_dec": tensors["b_dec"],
        },
        folder / "sae.safetensors",
    )
    return folder


def opened_at(folder, **changes):
    settings = SaeSettings(path=str(folder), device="cpu", **changes)
    return load_sae(settings, resolve_sae(settings))
