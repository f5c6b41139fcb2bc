"""A real fine-tune under a request's own settings: the truth that a simulation is measured against.

transformers' Trainer with peft's LoRA, or trl's DPOTrainer for preference pairs. Tokens and masks are those of the
`samples` artefact, in its order (by sample id), and the order of the batches is the Trainer's own for the seed.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretune.storage.errors import BadInput
from foretune.tasks.inputs.training import TrainingSettings
from foretune.tasks.loading import AdapterSettings, lora_config, lora_scale, target_weights

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor
    from transformers import Trainer, TrainerCallback

    from foretune.tasks.loading import LoadedModel


@dataclass(frozen=True)
class RealRun:
    delta: dict[str, Tensor]  # merged weight change, {name: [out, in]} fp32 on the CPU
    first_step: dict[str, Tensor]  # the same after the first optimizer step
    losses: tuple[float, ...]  # training loss of every step, nats per label token (per pair for DPO)
    steps: int
    rows: int  # rows with a label, each seen once per epoch
    seconds: float


def train(
    loaded: LoadedModel,
    table: pa.Table,
    adapter: AdapterSettings,
    training: TrainingSettings,
    dpo_beta: float | None,
    *,
    folder: Path,
    seed: int | None = None,
    rows: Sequence[int] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> RealRun:
    """Train a copy of the model; `loaded` stays as it is.

    `seed` orders the batches (default: training.seed, which always initialises the adapter); `rows` are positions
    in `table` to train on. The Trainer's own files go to `folder`. BadInput for pairs without trl installed.
    """
    import torch
    from peft import get_peft_model
    from transformers import PrinterCallback

    examples = _examples(table, range(len(table)) if rows is None else rows)
    run = _Settings(adapter, training, dpo_beta, training.seed if seed is None else seed, str(folder), examples)
    model = copy.deepcopy(loaded.model)
    model.requires_grad_(True)
    torch.manual_seed(training.seed)
    if adapter.method == "lora":
        model = get_peft_model(model, lora_config(adapter))
    path = _Path(adapter, target_weights(loaded, adapter.targets))
    trainer = (_sft_trainer if dpo_beta is None else _dpo_trainer)(loaded, model, run)
    trainer.remove_callback(PrinterCallback)
    for callback in (path.callback(), *callbacks):
        trainer.add_callback(callback)
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    losses = tuple(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    steps = trainer.state.global_step
    return RealRun(path.delta_of(model), path.first_step, losses, steps, len(examples), round(seconds, 3))


class _Path:
    """Reads the merged weight change off a model in training, and keeps that of the first step."""

    def __init__(self, adapter: AdapterSettings, base: dict[str, Tensor]) -> None:
        self.adapter, self.base = adapter, base
        self.first_step: dict[str, Tensor] = {}

    def delta_of(self, model: Any) -> dict[str, Tensor]:
        """{name: [out, in]} fp32, against the base weights."""
        parameters = {name: p.detach().float().cpu() for name, p in model.named_parameters()}
        if self.adapter.method == "full":
            return {name: parameters[name] - weight.float().cpu() for name, weight in self.base.items()}
        scale, delta = lora_scale(self.adapter), {}
        for name in self.base:
            module = f"base_model.model.{name.removesuffix('.weight')}"
            up, down = (parameters[f"{module}.lora_{side}.default.weight"] for side in "BA")
            delta[name] = scale * up @ down
            if getattr(model.get_submodule(module), "fan_in_fan_out", False):
                delta[name] = delta[name].T.contiguous()
        return delta

    def callback(self) -> TrainerCallback:
        """Keeps the delta of step 1."""
        from transformers import TrainerCallback

        keeper = self

        class Keep(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
                if state.global_step == 1:
                    keeper.first_step = keeper.delta_of(model)

        return Keep()


def _examples(table: pa.Table, rows: Sequence[int]) -> list[dict[str, list[int]]]:
    """Rows with a label as the trainers' collators want them."""
    columns = table.select(["input_ids", "loss_mask", "rejected_ids", "rejected_mask"]).to_pylist()
    return [_example(columns[row]) for row in rows if any(columns[row]["loss_mask"][1:])]


def _example(row: dict[str, Any]) -> dict[str, list[int]]:
    ids, mask = row["input_ids"], row["loss_mask"]
    if row["rejected_ids"] is None:
        return {"input_ids": ids, "labels": [token if kept else -100 for token, kept in zip(ids, mask, strict=True)]}
    prompt = mask.index(True)
    rejected = row["rejected_ids"][row["rejected_mask"].index(True) :]
    return {"prompt_ids": ids[:prompt], "chosen_ids": ids[prompt:], "rejected_ids": rejected}


def trainer_arguments(training: TrainingSettings, order: int, folder: str) -> dict[str, Any]:
    """Keyword arguments of transformers' TrainingArguments; `order` alone decides the order of the rows."""
    momentum = f"momentum={training.momentum},nesterov={training.nesterov}"
    sgd = {"optim": "sgd", "optim_args": momentum}
    return {
        "output_dir": folder,
        "per_device_train_batch_size": training.batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "num_train_epochs": training.epochs,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": training.lr_scheduler_type,
        "warmup_steps": training.warmup_ratio,
        "weight_decay": training.weight_decay,
        "adam_beta1": training.adam_beta1,
        "adam_beta2": training.adam_beta2,
        "adam_epsilon": training.adam_epsilon,
        "max_grad_norm": training.max_grad_norm,
        "seed": training.seed,
        "data_seed": order,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        **(sgd if training.optimizer == "sgd" else {"optim": "adamw_torch"}),
    }


@dataclass(frozen=True)
class _Settings:
    """One training, in the trainers' own words."""

    adapter: AdapterSettings
    training: TrainingSettings
    dpo_beta: float | None
    seed: int  # of the order of the rows
    folder: str
    examples: list[dict[str, list[int]]]


def _sft_trainer(loaded: LoadedModel, model: Any, run: _Settings) -> Trainer:
    from transformers import Trainer, TrainingArguments

    from foretune.tasks.numerics.batches import collate

    def collated(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
        batch = collate([(row["input_ids"], row["labels"]) for row in rows])
        return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": batch.labels}

    arguments = TrainingArguments(**trainer_arguments(run.training, run.seed, run.folder))
    return Trainer(model=model, args=arguments, train_dataset=run.examples, data_collator=collated)  # pyright: ignore[reportArgumentType]


def _dpo_trainer(loaded: LoadedModel, model: Any, run: _Settings) -> Trainer:
    try:
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer  # pyright: ignore[reportPrivateImportUsage]
        from trl.trainer.dpo_trainer import DataCollatorForPreference
    except ImportError as missing:
        raise BadInput("backtest: preference pairs are trained with trl's DPOTrainer; pip install trl") from missing

    class Tokenised(DPOTrainer):
        """The rows come tokenised: what the simulation read is what is trained on."""

        def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
            return dataset

    pad = loaded.tokenizer.pad_token_id
    return Tokenised(
        model=model,
        # LoRA's reference is the model with its adapter at the initialisation; a full fine-tune needs the base itself.
        ref_model=None if run.adapter.method == "lora" else copy.deepcopy(loaded.model),
        args=DPOConfig(
            **trainer_arguments(run.training, run.seed, run.folder),
            beta=run.dpo_beta,  # pyright: ignore[reportArgumentType]
            max_length=None,
            bf16=False,
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_list(run.examples),
        data_collator=DataCollatorForPreference(pad_token_id=loaded.tokenizer.eos_token_id if pad is None else pad),  # pyright: ignore[reportArgumentType]
        processing_class=loaded.tokenizer,
    )
