"""Rows as the installed TRL's own trainers make tokens and labels of them, through their collators."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foretune.storage.cache import scratch_folder
from foretune.storage.errors import BadInput

NUMBER = "foretune_row"
Sequence_ = tuple[list[int], list[bool]]
"""Token ids, and which of them are labels."""


def trl_version() -> str:
    """The installed TRL. BadInput where there is none."""
    from importlib import metadata

    try:
        return metadata.version("trl")
    except metadata.PackageNotFoundError:
        raise BadInput("--check compares with trl, which is not installed; pip install trl") from None


def trainer_rows(
    folder: Path, rows: Sequence[dict[str, Any]], pairs: bool, settings: dict[str, Any]
) -> dict[int, list[Sequence_]]:
    """{position in `rows`: its sequence, or of a pair both}, of the rows that TRL keeps.

    `rows` have one of TRL's forms, `settings` are fields of its SFTConfig or DPOConfig. The model is a random one of
    a few numbers: the weights of `folder` are not opened. What TRL refuses is raised as it says it, as BadInput.
    """
    trl_version()
    import datasets
    import trl
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    tiny: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model, reference = (LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **tiny)) for _ in range(2))
    bars = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    logging.getLogger("trl").setLevel(logging.ERROR)
    try:
        table = datasets.Dataset.from_list(
            [{NUMBER: number, **row} for number, row in enumerate(rows)], on_mixed_types="use_json"
        )
        with scratch_folder() as output:
            common = {"output_dir": str(output), "use_cpu": True, "bf16": False, "report_to": [], "disable_tqdm": True}
            names = ("DPOTrainer", "DPOConfig") if pairs else ("SFTTrainer", "SFTConfig")
            trainer_class, config_class = (getattr(trl, name) for name in names)
            trainer = trainer_class(
                model=model,
                args=config_class(**common, **settings),
                train_dataset=table,
                processing_class=tokenizer,
                **({"ref_model": reference} if pairs else {}),
            )
            return {row[NUMBER]: _collated(trainer, row) for row in trainer.train_dataset}
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise BadInput(f"--check: trl refuses these rows ({type(error).__name__}: {error})") from None
    finally:
        if bars:
            datasets.enable_progress_bars()


def _collated(trainer: Any, row: dict[str, Any]) -> list[Sequence_]:
    """The sequences of one row by themselves: without padding there is one to a line of the batch."""
    batch = trainer.data_collator([row])
    found = []
    for at in range(len(batch["input_ids"])):
        seen = batch["attention_mask"][at].bool() if "attention_mask" in batch else slice(None)
        ids = batch["input_ids"][at][seen].tolist()
        labels = (
            batch["completion_mask"][at][seen].bool() if "labels" not in batch else batch["labels"][at][seen] != -100
        )
        found.append((ids, labels.tolist()))
    return found
