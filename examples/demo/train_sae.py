"""Train an SAE with sae-lens on the residual stream of a local model.

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
    parser.add_argument("--architecture", choices=("topk", "batchtopk", "jumprelu"), default="topk")
    parser.add_argument("--d-sae", type=int, default=2304)
    parser.add_argument("--k", type=int, default=32, help="active features per token (except topk: on average)")
    parser.add_argument("--context", type=int, default=256, help="documents are cut to this many tokens")
    parser.add_argument("--tokens-per-file", type=int, default=380_000)
    parser.add_argument("--tokens", type=int, help="train on this many of all, evenly spaced: for short comparisons")
    parser.add_argument("--held-out", type=float, default=0.05)
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--batch", type=int, default=1024, help="tokens per step")
    parser.add_argument("--lr", type=float, default=2.5e-3)
    parser.add_argument("--start", type=Path, help="folder of a smaller SAE to grow: its features keep their numbers")
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
    total = sum(len(part) for part in parts)
    stride = max(1, total // (options.tokens or total))
    return torch.cat([part[::stride] for part in parts])


def shuffled_batches(activations: Tensor, size: int, seed: int) -> Iterator[Tensor]:
    """Endless batches [size, d_in] in fp32; each epoch is a new permutation."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(activations), generator=generator)
        for start in range(0, len(order) - size + 1, size):
            yield activations[order[start : start + size]].float()


def untrained(options: argparse.Namespace, d_in: int, threshold: float):
    """The sae-lens training SAE of --architecture; `threshold` is where JumpReLU starts."""
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

    shared = {
        "d_in": d_in,
        "d_sae": options.d_sae,
        "normalize_activations": "expected_average_only_in",
        "metadata": SAEMetadata(model_name=options.model.name, hook_name=options.hook, context_size=options.context),
    }
    if options.architecture == "topk":
        return TopKTrainingSAE(TopKTrainingSAEConfig(**shared, k=options.k))
    if options.architecture == "batchtopk":
        return BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**shared, k=options.k))
    return JumpReLUTrainingSAE(
        JumpReLUTrainingSAEConfig(
            **shared,
            jumprelu_sparsity_loss_mode="quadratic",
            target_l0=options.k,
            jumprelu_init_threshold=threshold,
            jumprelu_bandwidth=1.0,
            jumprelu_ste_to_input=True,
            pre_act_loss_coefficient=3e-6,
        )
    )


@torch.no_grad()
def grow(sae, start, sample: Tensor, scale: float) -> None:
    """Give `sae` the features of `start`, and directions in which `start` errs on `sample` [n, d_in] for the rest.

    A new feature takes the error of one token, drawn in proportion to its square, as it is done for dead features
    (Bricken et al., "Towards monosemanticity", 2023). `sae` reads activations multiplied by `scale`.
    """
    old, new = start.cfg.d_sae, sae.cfg.d_sae - start.cfg.d_sae
    errors = sample - start.decode(start.encode(sample))
    drawn = torch.multinomial(errors.square().sum(1), new)
    directions = torch.nn.functional.normalize(errors[drawn], dim=1)
    sae.W_dec.data[:old], sae.W_dec.data[old:] = start.W_dec, directions
    sae.W_enc.data[:, :old], sae.W_enc.data[:, old:] = start.W_enc, directions.T
    sae.b_enc.data[:old], sae.b_enc.data[old:] = start.b_enc * scale, 0.0
    sae.b_dec.data = start.b_dec * scale


def train(options: argparse.Namespace, activations: Tensor):
    """The trained sae-lens SAE; its input scaling is folded into the weights."""
    from sae_lens import SAE, SAETrainer
    from sae_lens.config import SAETrainerConfig

    total = int(options.epochs * len(activations))
    steps = total // options.batch
    d_in = activations.shape[1]
    sample = activations[:: max(1, len(activations) // 20_000)].float()
    scale = float(d_in**0.5 / sample.norm(dim=1).mean())  # as the trainer scales: to a mean norm of sqrt(d)
    start = SAE.load_from_disk(options.start) if options.start else None
    weakest = start.encode(sample).topk(options.k)[0][:, -1].median().item() * scale if start else 0.5
    sae = untrained(options, d_in, weakest)
    if start:
        grow(sae, start, sample, scale)
    else:  # starting b_dec at the mean spares features for it
        sae.b_dec.data = sample.mean(0) * scale
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
    """Write the inference SAE with bf16 matrices; cfg.json says float32, so it loads as float32."""
    from safetensors.torch import load_file, save_file

    if sae.cfg.architecture() == "jumprelu":
        sae.fold_W_dec_norm()  # the others do so as they are saved
    weights, config = sae.save_inference_model(out)
    kept = {name: w.bfloat16() if w.ndim == 2 else w for name, w in load_file(weights).items()}
    save_file({name: w.contiguous() for name, w in kept.items()}, weights)
    settings = json.loads(config.read_text())
    # The decoder rows are unit vectors now, so there is no norm left to rescale by.
    if "rescale_acts_by_decoder_norm" in settings:
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
