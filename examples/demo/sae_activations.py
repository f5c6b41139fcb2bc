"""Residual-stream activations of a local Llama-like model at a TransformerLens-style hook point."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from sae_text import Document
from torch import Tensor

HOOK = re.compile(r"blocks\.(\d+)\.hook_resid_(pre|post)")


def layers_before(hook_name: str) -> int:
    """How many decoder layers have run when the residual stream passes `hook_name`."""
    match = HOOK.fullmatch(hook_name)
    if match is None:
        raise SystemExit(f"{hook_name}: not a residual hook; write blocks.N.hook_resid_pre or ..._post")
    return int(match[1]) + (match[2] == "post")


def load_model(folder: Path, layers: int | None = None):
    """The causal LM of `folder` in fp32; with `layers`, cut so that it returns that residual stream."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if layers is not None:
        model.model.layers = model.model.layers[:layers]
        model.model.norm = torch.nn.Identity()
    return model


def batches(documents: list[Document], rows: int) -> Iterator[tuple[list[Document], Tensor, Tensor]]:
    """Right-padded batches of documents of like length: documents, ids [b, s], attention mask [b, s]."""
    ordered = sorted(documents, key=lambda d: len(d.ids))
    for start in range(0, len(ordered), rows):
        chosen = ordered[start : start + rows]
        width = len(chosen[-1].ids)
        ids = torch.zeros(len(chosen), width, dtype=torch.long)
        mask = torch.zeros(len(chosen), width, dtype=torch.long)
        for i, document in enumerate(chosen):
            ids[i, : len(document.ids)] = torch.tensor(document.ids)
            mask[i, : len(document.ids)] = 1
        yield chosen, ids, mask


@torch.inference_mode()
def residuals(model, documents: list[Document], rows: int = 32) -> Iterator[tuple[list[Document], Tensor]]:
    """Yield per batch its documents and their activations [tokens of the batch, d] in bf16, in order.

    The forward runs under bf16 autocast: 1.6 times faster than fp32 on a CPU with AVX512-BF16, with
    the residual stream itself kept in fp32.
    """
    for chosen, ids, mask in batches(documents, rows):
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.model(ids, attention_mask=mask, use_cache=False).last_hidden_state
        yield chosen, hidden[mask.bool()].bfloat16()


def cached_activations(model, documents: list[Document], cache: Path, salt: str) -> Tensor:
    """Activations [tokens, d] of `documents`, kept in `cache` under a digest of the ids and `salt`."""
    from safetensors.torch import load_file, save_file
    from tqdm import tqdm

    content = hashlib.sha256(salt.encode())
    for document in documents:
        content.update(str(document.ids).encode())
    path = cache / f"{content.hexdigest()[:16]}.safetensors"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        parts = [acts for _, acts in tqdm(residuals(model, documents), total=-(-len(documents) // 32))]
        save_file({"acts": torch.cat(parts)}, path)
    return load_file(path)["acts"]
