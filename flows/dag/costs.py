"""What a request would cost beyond all measure: said before anything is read or computed, with the setting that allows
it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from foretune.flows.request import Request
from foretune.storage.datasets import dataset_bytes
from foretune.storage.errors import BadInput
from foretune.tasks.behaviour.harness_tasks import harness_suites
from foretune.tasks.behaviour.suite_files import chosen_suites
from foretune.tasks.inputs.sources import Sources, benchmark_files, prompt_file, resolve_sources
from foretune.tasks.inputs.training import TrainingSettings
from foretune.tasks.loading.tokenizer_files import read_config
from foretune.tasks.samples.table import SampleIndex

SCORE_BYTES = 4
"""Of one attention score: eager attention takes its softmax in float32, whatever the model's dtype."""


def checked_sources(request: Request) -> Sources:
    """`resolve_sources` of a request, after a look at the sizes: nothing too large is fetched or hashed."""
    dataset, most = request.dataset, request.runtime.max_dataset_gb
    benchmarks = request.quality.benchmarks
    for uri in filter(
        None,
        (dataset.path, dataset.heldout.path, dataset.preferences, dataset.probes, *benchmarks, request.answers.prompts),
    ):
        size = dataset_bytes(uri)
        if size > most * 1e9:
            raise BadInput(
                f"{uri}: {size / 1e9:.1f} GB, more than runtime.max_dataset_gb ({most:g}); give a sample of its "
                "rows, or raise that setting"
            )
    chosen_suites(request.behaviour)  # whose files are read again when their passes are wired
    harness_suites(request.behaviour)
    sources = resolve_sources(dataset, request.model, request.sae, request.adapter.targets, request.saes)
    prompts = prompt_file(request.answers.prompts)
    return replace(sources, benchmarks=benchmark_files(benchmarks), prompts=prompts)


def check_costs(request: Request, train: SampleIndex, heldout: SampleIndex, folder: Path) -> None:
    """BadInput for more steps, replays or attention than the request's `runtime` part allows."""
    check_steps(request, request.training, len(train.trained_ids))
    _check_attention(request, max([*train.tokens, *heldout.tokens]), folder)


def check_steps(request: Request, training: TrainingSettings, rows: int) -> None:
    """BadInput where the optimizer's steps, or those of all replays, are more than `runtime.max_steps`."""
    most = request.runtime.max_steps
    steps = training.steps(rows)
    if steps > most:
        raise BadInput(
            f"training.epochs {training.epochs:g} over {rows} rows are {steps:,} steps, more than runtime.max_steps "
            f"({most:,}); lower the epochs, or raise that setting"
        )
    replays, halved = request.influence.replays, math.ceil(rows / 2 / training.rows_per_step)
    longest = max(min(replays.steps, steps), halved)
    if request.influence.method in ("auto", "replayed") and replays.runs * longest > most:
        raise BadInput(
            f"influence.replays are {replays.runs:,} runs of {longest:,} steps, {replays.runs * longest:,} in all, "
            f"more than runtime.max_steps ({most:,}); lower influence.replays.runs, or raise that setting"
        )


def _check_attention(request: Request, longest: int, folder: Path) -> None:
    heads = _heads(folder) if request.model.attn_implementation == "eager" else 0
    needed = heads * longest**2 * SCORE_BYTES / 1e9
    if needed > request.runtime.max_attention_gb:
        raise BadInput(
            f"the longest row has {longest:,} tokens, and eager attention takes {needed:,.0f} GB a layer, above "
            f"runtime.max_attention_gb ({request.runtime.max_attention_gb:g}); lower dataset.max_length, or raise that "
            "setting"
        )


def _heads(folder: Path) -> int:
    """Attention heads of the model in this folder; 0 where its configuration does not say."""
    config = read_config(folder / "config.json")
    for part in (config, config.get("text_config")):
        found = part.get("num_attention_heads") or part.get("n_head") if isinstance(part, dict) else None
        if isinstance(found, int):
            return found
    return 0
