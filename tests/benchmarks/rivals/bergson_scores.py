"""Scores of bergson 2.5.1: `python bergson_scores.py FOLDER ekfac|trackstar OUT`.

The library's own pipelines, on the CPU, with its defaults: `ekfac` is `bergson ekfac` (eigenvalue-corrected K-FAC with
labels sampled from the model, inverse damped by 0.1 x the mean eigenvalue), `trackstar` is `bergson trackstar` (random
projection to 16 x 16 per module, mixed autocorrelation Hessians, unit-normalised gradients). Gradients are those of the
token-summed loss of each row, its default and recommendation; a held-out row's column of `ekfac` is divided by its
number of label tokens afterwards, which is exact because the score is linear in the query gradient. Modules: the full
weights of the target modules, the others excluded by `filter_modules`. The pipelines load the model once for each of
their steps: these seconds are measured and left out.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import bergson.build
import bergson.cli.trackstar
import bergson.hessians.hessian_approximations
import bergson.hessians.pipeline
import bergson.score.score
import datasets
import numpy as np
import torch
from bergson.cli.commands import Ekfac, Trackstar
from bergson.config.config import (
    DataConfig,
    HessianConfig,
    HessianPipelineConfig,
    IndexConfig,
    PreprocessConfig,
    QuerySetConfig,
    ScoreConfig,
    TrackstarConfig,
    TrackstarIndexConfig,
)
from bergson.data import load_scores
from exchange import IGNORED, Exchange

METHODS = ("ekfac", "trackstar")


def excluded(model: str, targets: list[str]) -> str:
    """Comma-separated names of the linear layers that are no targets, as bergson's globs name them."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        body = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)).base_model
    linear = {name.rpartition(".")[2] for name, layer in body.named_modules() if isinstance(layer, torch.nn.Linear)}
    return ",".join(f"*.{name}" for name in sorted(linear - set(targets)))


def time_steps(exchange: Exchange) -> None:
    """Take the seconds of loading the model and of the scoring pass."""
    scoring = bergson.score.score.score_dataset
    loading = bergson.build.setup_model_and_peft

    def timed_loading(*words, **named):
        with exchange.timed("loading"):
            return loading(*words, **named)

    def timed_loading_while_scoring(*words, **named):
        with exchange.timed("loading while scoring"):
            return timed_loading(*words, **named)

    def timed_scoring(*words, **named):
        with exchange.timed("scoring"):
            return scoring(*words, **named)

    bergson.build.setup_model_and_peft = timed_loading
    bergson.hessians.hessian_approximations.setup_model_and_peft = timed_loading
    bergson.score.score.setup_model_and_peft = timed_loading_while_scoring
    bergson.hessians.pipeline.score_dataset = timed_scoring
    bergson.cli.trackstar.score_dataset = timed_scoring


def main() -> None:
    exchange = Exchange.from_arguments(METHODS)
    datasets.disable_caching()
    time_steps(exchange)
    index = {
        "model": exchange.model,
        "precision": "fp32",
        "data": DataConfig(dataset=str(exchange.folder / "train.jsonl")),
        "filter_modules": excluded(exchange.model, exchange.setting["target_modules"]),
        "max_batch_size": exchange.setting["batch_size"],
    }
    query = QuerySetConfig(dataset=str(exchange.folder / "heldout.jsonl"), aggregation="none")
    with tempfile.TemporaryDirectory() as folder:
        run_path = str(Path(folder) / "run")
        with exchange.timed("total"):
            if exchange.method == "ekfac":
                Ekfac(
                    IndexConfig(run_path=run_path, **index),
                    HessianConfig(method="kfac", ev_correction=True),
                    ScoreConfig(),
                    PreprocessConfig(),
                    HessianPipelineConfig(query=query),
                ).execute()
            else:
                Trackstar(TrackstarIndexConfig(run_path=run_path, **index), TrackstarConfig(query=query)).execute()
        stored = load_scores(Path(run_path) / "scores")
        scores = -torch.from_numpy(np.array(stored[:], dtype=np.float32))  # stored: positive where it helps
        if not stored.is_written():
            raise ValueError("bergson left scores unwritten")
    if exchange.method == "ekfac":
        tokens = [sum(label != IGNORED for label in row["labels"][1:]) for row in exchange.rows("heldout")]
        scores = scores / torch.tensor(tokens)
    exchange.write("bergson", scores)


if __name__ == "__main__":
    main()
