"""Train a TopK SAE with sae-lens on the residual stream of a local model.

    python train_sae.py MODEL_FOLDER OUT_FOLDER TEXT [TEXT ...] [--hook blocks.11.hook_resid_pre] ...

Reads the text files (forms: sae_text.py), runs the model up to the hook once, keeps the activations
in --cache, then trains for --epochs over them in random order. One document in twenty is held out,
chosen by a hash of its opening; evaluate_sae.py scores the SAE on those.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from sae_activations import cached_activations, layers_before, load_model
from sae_text import Document, read_documents
from torch import Tensor


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="local Hugging Face folder")
    parser.add_argument("out", type=Path, help="folder for cfg.json and sae_weights.safetensors")
    parser.add_argument("texts", type=Path, nargs="+", help="files to train on")
    parser.add_argument("--hook", default="blocks.11.hook_resid_pre")
    parser.add_argument("--d-sae", type=int, default=2304)
    parser.add_argument("--k", type=int, default=32, help="active features per token")
    parser.add_argument("--context", type=int, default=256, help="documents are cut to this many tokens")
    parser.add_argument("--tokens-per-file", type=int, default=380_000)
    parser.add_argument("--held-out", type=float, default=0.05)
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--batch", type=int, default=1024, help="tokens per step")
    parser.add_argument("--lr", type=float, default=2.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=Path(".sae_activations"))
    return parser.parse_args()


def training_documents(options: argparse.Namespace) -> dict[str, list[Document]]:
    """Documents to train on, by file: the held-out ones removed, at most --tokens-per-file each."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    chosen: dict[str, list[Document]] = {}
    for path in options.texts:
        documents = read_documents([path], tokenizer, options.context, options.held_out)
        random.Random(options.seed).shuffle(documents)
        kept, total = [], 0
        for document in documents:
            if not document.held_out and total < options.tokens_per_file:
                kept.append(document)
                total += len(document.ids)
        chosen[str(path)] = kept
    return chosen


def collect(options: argparse.Namespace) -> Tensor:
    """Activations [tokens, d_in] of the whole training text, bf16."""
    model = load_model(options.model, layers_before(options.hook))
    salt = f"{options.model.resolve()} {options.hook}"
    parts = []
    for path, documents in training_documents(options).items():
        if not documents:
            continue
        parts.append(cached_activations(model, documents, options.cache, salt))
        print(f"{path}: {len(documents)} documents, {len(parts[-1]):,} tokens", flush=True)
    return torch.cat(parts)


def shuffled_batches(activations: Tensor, size: int, seed: int) -> Iterator[Tensor]:
    """Endless batches [size, d_in] in fp32; each epoch is a new permutation."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(activations), generator=generator)
        for start in range(0, len(order) - size + 1, size):
            yield activations[order[start : start + size]].float()


def train(options: argparse.Namespace, activations: Tensor):
    """The trained sae-lens SAE; its input scaling is folded into the weights."""
    from sae_lens import SAETrainer
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

    total = int(options.epochs * len(activations))
    steps = total // options.batch
    d_in = activations.shape[1]
    sae = TopKTrainingSAE(
        TopKTrainingSAEConfig(
            d_in=d_in,
            d_sae=options.d_sae,
            k=options.k,
            normalize_activations="expected_average_only_in",
            metadata=SAEMetadata(model_name=options.model.name, hook_name=options.hook, context_size=options.context),
        )
    )
    # Starting b_dec at the mean (in the scaled space, mean norm sqrt(d)) spares features for it.
    sample = activations[:: max(1, len(activations) // 50_000)].float()
    sae.b_dec.data = sample.mean(0) * d_in**0.5 / sample.norm(dim=1).mean()
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=total,
            train_batch_size_samples=options.batch,
            lr=options.lr,
            lr_end=options.lr / 10,
            lr_warm_up_steps=min(100, steps // 10),
            lr_decay_steps=steps // 3,
            dead_feature_window=max(50, len(activations) // options.batch // 3),
            n_batches_for_norm_estimate=25,
            autocast=True,  # bf16 products halve the time of a step on a CPU with AVX512-BF16
        ),
        sae,
        shuffled_batches(activations, options.batch, options.seed),
    )
    return trainer.fit()


def save(sae, out: Path) -> None:
    """Write the inference SAE with bf16 weights; cfg.json says float32, so it loads as float32."""
    from safetensors.torch import load_file, save_file

    weights, config = sae.save_inference_model(out)
    save_file({name: w.bfloat16().contiguous() for name, w in load_file(weights).items()}, weights)
    settings = json.loads(config.read_text())
    # Saving has made the decoder rows unit vectors, so there is no norm left to rescale by.
    settings["rescale_acts_by_decoder_norm"] = False
    settings["normalize_activations"] = "none"
    config.write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n")


def main() -> None:
    options = arguments()
    torch.manual_seed(options.seed)
    start = time.time()
    activations = collect(options)
    collected = time.time()
    print(f"{len(activations):,} tokens collected in {collected - start:.0f} s", flush=True)
    save(train(options, activations), options.out)
    print(f"trained in {time.time() - collected:.0f} s -> {options.out}")


if __name__ == "__main__":
    main()
