"""Scores of dattri 0.3.0: `python dattri_scores.py FOLDER logra|logra_identity OUT`.

LoGra is the attributor that dattri's own language-model benchmark uses (GPT-2 on WikiText-2); its settings are taken
over: random projection of each module's gradient to 32 x 32, damping 1e-2 x the mean eigenvalue of the empirical Fisher
matrix of each module, on the CPU. `logra_identity` is the same without the inverse. Training loss: token-summed
cross-entropy of each row; test loss: mean token loss of each held-out row. The library multiplies a row's gradient by
the number of rows of its batch, because it expects losses averaged over the batch: both losses are averaged over rows
here. Modules: the full weights of the target modules; the other weights are frozen, which saves the library their
gradients. `torch.compile`, which the library puts around the projection, is switched off: on few rows compiling sixty
modules costs more than it saves.
"""

from __future__ import annotations

import os
import tempfile

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import torch
from dattri.algorithm.logra import LoGraAttributor
from dattri.task import AttributionTask
from exchange import Exchange, by_length, load_model, pad, row_losses, target_names
from torch.utils.data import DataLoader

METHODS = ("logra", "logra_identity")
PROJECTION, DAMPING = 1024, 1e-2  # of dattri's examples/pretrained_benchmark/logra_wikitext2_gpt2_lds.py


def mean_loss(logits, labels, **_):
    """The loss of the model's own output, which dattri takes for test rows: mean over rows of mean over tokens."""
    losses, tokens = row_losses(logits, labels)
    return (losses / tokens).mean()


def summed_loss(model, batch, device):
    """Mean over rows of the sum over tokens."""
    output = model(input_ids=batch["input_ids"].to(device), attention_mask=batch["attention_mask"].to(device))
    return row_losses(output.logits, batch["labels"].to(device))[0].mean()


def main() -> None:
    exchange = Exchange.from_arguments(METHODS)
    train, heldout = exchange.rows("train"), exchange.rows("heldout")
    train_order, heldout_order = by_length(train), by_length(heldout)
    size = exchange.setting["batch_size"]
    loaders = [
        DataLoader([rows[row] for row in order], batch_size=size, collate_fn=pad)
        for rows, order in ((train, train_order), (heldout, heldout_order))
    ]
    model = load_model(exchange)
    model.config.use_cache = False
    model.loss_function = mean_loss
    modules = target_names(model, exchange.setting)
    model.requires_grad_(False)
    for name in modules:
        model.get_submodule(name).weight.requires_grad_(True)
    task = AttributionTask(
        loss_func=summed_loss,
        model=model,
        checkpoints=[model.state_dict()],
        checkpoints_load_func=lambda loaded, _: loaded,
    )
    with tempfile.TemporaryDirectory() as folder, exchange.timed("total"):
        attributor = LoGraAttributor(
            task,
            layer_names=modules,
            hessian="Identity" if exchange.method == "logra_identity" else "eFIM",
            damping=DAMPING,
            device="cpu",
            proj_dim=PROJECTION,
            cache_dir=folder,
        )
        attributor.cache(loaders[0])
        with exchange.timed("scoring"):
            found = attributor.attribute(*loaders)  # [train, heldout], positive where it helps
    scores = torch.empty(len(train), len(heldout))
    scores[torch.tensor(train_order)[:, None], torch.tensor(heldout_order)] = -found.detach().float()
    exchange.write("dattri", scores)


if __name__ == "__main__":
    main()
