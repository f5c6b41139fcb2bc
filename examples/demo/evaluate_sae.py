"""Score a trained SAE on text it has not seen.

    python evaluate_sae.py MODEL_FOLDER SAE_FOLDER TEXT [TEXT ...] [--unseen FILE ...] [--json OUT]

TEXT are the files given to train_sae.py: only their held-out documents are read. Files after
--unseen were never trained on and are read whole. Figures are means over tokens.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from sae_activations import batches, layers_before, load_model
from sae_text import Document, is_chat, read_documents
from torch import Tensor


@dataclass(frozen=True)
class Fidelity:
    documents: int
    tokens: int
    explained_variance: float  # 1 - squared error / squared distance to the mean activation
    cosine: float  # mean cosine of activation and reconstruction
    l0: float  # mean number of active features per token
    silent_share: float  # share of features that fire on none of these tokens
    loss_clean: float  # nats per token
    loss_sae: float  # with the reconstruction in place of the activation, at every position
    loss_zero: float  # with zeros in its place
    loss_recovered: float  # (zero - sae) / (zero - clean)


def spliced_loss(model, layer: int, documents: list[Document], change: Callable[[Tensor], Tensor]) -> float:
    """Next-token loss in nats per token when `change` rewrites the input of decoder layer `layer`.

    The forwards run under bf16 autocast (see `residuals`), the change of the stream itself in fp32.
    """

    def rewrite(_module, args):
        with torch.autocast("cpu", enabled=False):
            return (change(args[0].float()), *args[1:])

    total, count = 0.0, 0
    handle = model.model.layers[layer].register_forward_pre_hook(rewrite)
    try:
        for _, ids, mask in batches(documents, 16):
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
            labels = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
            total += torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").item()
            count += int((labels != -100).sum())
    finally:
        handle.remove()
    return total / count


@torch.inference_mode()
def evaluate(model, sae, layer: int, documents: list[Document]) -> Fidelity:
    """Every figure of Fidelity for `documents`; `sae` reads the input of decoder layer `layer`."""
    seen: list[Tensor] = []

    def record(acts: Tensor) -> Tensor:
        seen.append(acts)
        return acts

    clean = spliced_loss(model, layer, documents, record)
    masks = [mask.bool() for _, _, mask in batches(documents, 16)]
    acts = torch.cat([a[m] for a, m in zip(seen, masks, strict=True)])
    features = sae.encode(acts)
    recon = sae.decode(features)
    with_sae = spliced_loss(model, layer, documents, lambda a: sae.decode(sae.encode(a)))
    zero = spliced_loss(model, layer, documents, torch.zeros_like)
    return Fidelity(
        documents=len(documents),
        tokens=len(acts),
        explained_variance=1 - float((acts - recon).square().sum() / (acts - acts.mean(0)).square().sum()),
        cosine=float(torch.cosine_similarity(acts, recon, dim=-1).mean()),
        l0=float((features > 0).sum(-1).float().mean()),
        silent_share=float((features > 0).any(0).logical_not().float().mean()),
        loss_clean=clean,
        loss_sae=with_sae,
        loss_zero=zero,
        loss_recovered=(zero - with_sae) / (zero - clean),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("sae", type=Path)
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--unseen", type=Path, nargs="*", default=[])
    parser.add_argument("--held-out", type=float, default=0.05, help="as in train_sae.py")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--documents", type=int, default=40, help="at most this many per file of TEXT")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()

    from sae_lens import SAE
    from transformers import AutoTokenizer

    sae = SAE.load_from_disk(options.sae)
    model, tokenizer = load_model(options.model), AutoTokenizer.from_pretrained(options.model)
    layer = layers_before(sae.cfg.metadata.hook_name)
    groups: dict[str, list[Document]] = {}
    for path in [*options.texts, *options.unseen]:
        unseen = path in options.unseen
        share = 1.0 if unseen else options.held_out
        found = [d for d in read_documents([path], tokenizer, options.context, share) if d.held_out]
        random.Random(0).shuffle(found)
        group = path.name if unseen else "held-out chat" if is_chat(path) else "held-out prose"
        groups.setdefault(group, []).extend(found if unseen else found[: options.documents])
    figures = {}
    for name, documents in groups.items():
        if documents:
            figures[name] = asdict(evaluate(model, sae, layer, documents))
            print(name, json.dumps(figures[name]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
