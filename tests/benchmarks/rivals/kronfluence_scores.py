"""Scores of kronfluence 1.0.1: `python kronfluence_scores.py FOLDER ekfac|ekfac_damped|identity OUT`.

Training loss: token-summed cross-entropy of each row, as kronfluence's language examples define it. Measurement: mean
token loss of each held-out row. Within one held-out row sum and mean rank alike, because the score is linear in the
measurement. Tracked: the full weights of the target modules. The Fisher matrix is the true one (labels sampled from the
model), the library's default. `ekfac` keeps the default damping 1e-8; `ekfac_damped` asks for the library's heuristic,
0.1 x the mean eigenvalue. All query gradients are held at once (accumulated over batches), so that the training rows
are passed over once: the library's cheapest setting here.
"""

from __future__ import annotations

import math
import tempfile

import torch
from exchange import IGNORED, Exchange, by_length, load_model, pad, row_losses, target_names
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from kronfluence.utils.dataset import DataLoaderKwargs

METHODS = ("ekfac", "ekfac_damped", "identity")


class LanguageModelling(Task):
    """Summed loss for training, mean loss of each row for the measurement."""

    def __init__(self, modules: list[str]) -> None:
        super().__init__()
        self.modules = modules

    def compute_train_loss(self, batch, model, sample=False):
        logits = forward(batch, model)
        labels = batch["labels"]
        if sample:
            with torch.no_grad():
                probabilities = logits[:, :-1].flatten(0, 1).softmax(dim=-1)
                drawn = torch.multinomial(probabilities, 1).view(len(labels), -1)
                kept = labels[:, 1:] == IGNORED
                labels = torch.cat([labels[:, :1], drawn.masked_fill(kept, IGNORED)], dim=1)
        return row_losses(logits, labels)[0].sum()

    def compute_measurement(self, batch, model):
        losses, tokens = row_losses(forward(batch, model), batch["labels"])
        return (losses / tokens).sum()

    def get_influence_tracked_modules(self):
        return self.modules

    def get_attention_mask(self, batch):
        return batch["attention_mask"]


def forward(batch, model):
    """Logits [rows, tokens, vocabulary]."""
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits


def main() -> None:
    exchange = Exchange.from_arguments(METHODS)
    train, heldout = exchange.rows("train"), exchange.rows("heldout")
    train_order, heldout_order = by_length(train), by_length(heldout)
    sorted_train, sorted_heldout = [train[row] for row in train_order], [heldout[row] for row in heldout_order]
    model = load_model(exchange)
    task = LanguageModelling(target_names(model, exchange.setting))
    model = prepare_model(model, task)
    strategy = "identity" if exchange.method == "identity" else "ekfac"
    damping = {"damping_factor": None} if exchange.method == "ekfac_damped" else {}
    size = exchange.setting["batch_size"]
    with tempfile.TemporaryDirectory() as folder, exchange.timed("total"):
        analyzer = Analyzer("rival", model, task, cpu=True, output_dir=folder, disable_tqdm=True)
        analyzer.set_dataloader_kwargs(DataLoaderKwargs(collate_fn=pad))
        analyzer.fit_all_factors(
            "factors", sorted_train, per_device_batch_size=size, factor_args=FactorArguments(strategy=strategy)
        )
        with exchange.timed("scoring"):
            accumulated = math.ceil(len(heldout) / size)
            analyzer.compute_pairwise_scores(
                "scores",
                "factors",
                query_dataset=sorted_heldout,
                train_dataset=sorted_train,
                per_device_query_batch_size=size,
                per_device_train_batch_size=size,
                score_args=ScoreArguments(query_gradient_accumulation_steps=accumulated, **damping),
            )
        found = analyzer.load_pairwise_scores("scores")["all_modules"]  # [heldout, train], positive where it helps
    scores = torch.empty(len(train), len(heldout))
    scores[torch.tensor(train_order)[:, None], torch.tensor(heldout_order)] = -found.T.float()
    exchange.write("kronfluence", scores)


if __name__ == "__main__":
    main()
