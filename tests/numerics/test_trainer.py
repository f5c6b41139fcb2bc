"""The recursion beside transformers' Trainer itself, where the loss is linear in the adapted weights.

Same rows, same masks, same request: the predicted weights are the trained ones to 1e-6.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from foretune.tasks.backtest.real_run import trainer_arguments
from foretune.tasks.inputs.training import TrainingSettings
from foretune.tasks.loading import AdapterSettings, lora_config, lora_scale, undecayed_weights
from foretune.tasks.numerics.orders import row_shares, trainer_steps
from foretune.tasks.numerics.replay import FullAdapter, LoraAdapter, replay
from foretune.tasks.numerics.row_gradients import RowGradients
from foretune.tasks.prediction.virtual_run import VirtualRun
from tests.numerics.fields import field_of

pytestmark = pytest.mark.slow

ROWS, TOKENS, BATCH, ACCUMULATION = 13, 6, 3, 2
SHAPES = {"first": (6, 5), "second": (4, 5)}
COMMON = {"batch_size": BATCH, "gradient_accumulation_steps": ACCUMULATION, "epochs": 2.5, "max_grad_norm": 0.0}
SGD = {"optimizer": "sgd", "learning_rate": 0.02}
CASES = {
    "adamw, linear": {"learning_rate": 0.01},
    "adamw, cosine, warm-up by ratio": {"learning_rate": 0.01, "lr_scheduler_type": "cosine", "warmup_ratio": 0.3},
    "adamw, warm-up by steps": {"learning_rate": 0.01, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 3},
    "adamw, decay, clipped": {"learning_rate": 0.01, "weight_decay": 0.1, "max_grad_norm": 0.05},
    "adamw, betas": {"learning_rate": 0.01, "adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-6},
    "sgd, constant": {**SGD, "lr_scheduler_type": "constant"},
    "sgd, momentum, decay": {**SGD, "momentum": 0.9, "weight_decay": 0.05},
    "sgd, nesterov, clipped": {**SGD, "momentum": 0.9, "nesterov": True, "max_grad_norm": 0.05},
}


class LinearTokens(nn.Module):
    """The loss of a label token is d . (W x), linear in W, with d and x data; labels are shifted as in a causal LM."""

    loss_type = "ForCausalLM"  # the Trainer then counts the label tokens as it does for a language model

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Linear(inputs, outputs, bias=False) for outputs, inputs in SHAPES.values())
        self.norm = nn.Linear(4, 1, bias=False)  # a vector that weight decay leaves alone, by its name

    def forward(self, first, second, labels, num_items_in_batch=None, **kwargs):
        tokens = sum(
            (d * getattr(self, name)(x)).sum(-1)
            for name, (d, x) in {"first": split(first, "first"), "second": split(second, "second")}.items()
        )
        tokens = tokens + self.norm(first[..., :4]).squeeze(-1)
        kept = labels[:, 1:] != -100
        total = (tokens[:, 1:] * kept).sum()
        return {"loss": total / (kept.sum() if num_items_in_batch is None else num_items_in_batch)}


def split(data, name):
    """Output gradient d [.., out] and input x [.., in] of one module."""
    return data[..., : SHAPES[name][0]], data[..., SHAPES[name][0] :]


@pytest.fixture
def rows():
    """13 rows of 6 tokens, of which 1 to 5 have a label: batches of 3 rows differ in their number of label tokens."""
    torch.manual_seed(0)
    made = []
    for row in range(ROWS):
        labels = torch.full((TOKENS,), -100)
        labels[0] = 1  # nothing precedes it: no loss, and not to be counted
        labels[TOKENS - 1 - row % 5 :] = 1
        made.append({name: torch.randn(TOKENS, sum(shape)) for name, shape in SHAPES.items()} | {"labels": labels})
    return made


def row_gradient(row, name):
    """Gradient of the row's summed loss, [out, in]."""
    kept = row["labels"][1:] != -100
    if name == "norm":
        return row["first"][1:, :4][kept].sum(0, keepdim=True)
    d, x = (part[1:][kept] for part in split(row[name], name))
    return d.T @ x


def label_tokens(row):
    return int((row["labels"][1:] != -100).sum())


def trained(model, rows, training, folder):
    """The real thing."""
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(**trainer_arguments(training, training.seed, str(folder)), use_cpu=True)
    Trainer(model=model, args=arguments, train_dataset=rows).train()


def settings(case):
    return TrainingSettings.model_validate(COMMON | CASES[case])


@pytest.mark.parametrize("case", CASES)
def test_a_virtual_run_of_lora_is_the_trainers(case, rows, tmp_path):
    """A0 is square here: its row space is everything, so that what is stored of a row is its whole gradient."""
    from peft import get_peft_model

    training = settings(case)
    adapter = AdapterSettings(r=5, lora_alpha=7, use_rslora=True, target_modules=list(SHAPES))
    torch.manual_seed(1)
    config = lora_config(adapter)
    config.task_type = None  # LinearTokens generates nothing
    model = get_peft_model(LinearTokens(), config)
    factors = {}
    for name in SHAPES:
        weight = model.get_submodule(f"base_model.model.{name}.lora_A.default").weight
        nn.init.orthogonal_(weight.data)
        factors[name] = weight.detach().clone()
    trained(model, rows, training, tmp_path)
    field = field_of(
        [{name: row_gradient(row, name) for name in SHAPES} for row in rows],
        [label_tokens(row) for row in rows],
        [1] * ROWS,
    )
    detail = RowGradients(
        factors,
        tuple(map(float, field.tokens)),
        lambda numbers, name: torch.stack([row_gradient(rows[number], name) @ factors[name].T for number in numbers]),
    )
    moving = LoraAdapter(factors, lora_scale(adapter), {name: shape[0] for name, shape in SHAPES.items()})
    steps = training.steps(ROWS)
    assert steps == math.ceil(2.5 * 3)
    predicted = VirtualRun(moving, field, training, steps, detail).replayed([steps])
    assert bool(predicted.clipped_steps) == bool(training.max_grad_norm)
    for name, delta in predicted.delta.items():
        down, up = (
            model.get_submodule(f"base_model.model.{name}.lora_{side}.default").weight.detach() for side in "AB"
        )
        assert float(delta.norm()) > 1e-2
        torch.testing.assert_close(delta, lora_scale(adapter) * up @ down, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_a_full_fine_tune_is_the_trainers_norms_without_decay(case, rows, tmp_path):
    training = settings(case)
    torch.manual_seed(2)
    model = LinearTokens()
    base = {name.removesuffix(".weight"): weight.detach().clone() for name, weight in model.named_parameters()}
    kept = {name.removesuffix(".weight") for name in undecayed_weights(model)}
    assert kept == {"norm"}
    trained(model, rows, training, tmp_path)
    steps = trainer_steps(ROWS, BATCH, ACCUMULATION, training.steps(ROWS), training.seed)
    shares = [row_shares(step, [label_tokens(row) for row in rows]) for step in steps]
    virtual = VirtualRun(FullAdapter(base, frozenset(kept)), FIELD_OF_ROWS, training, len(steps))
    predicted = replay(
        lambda step, name: sum(share * row_gradient(rows[row], name) for row, share in shares[step].items()),
        virtual.adapter,
        training.optimizer_settings(),
        virtual.rates,
    )
    for name, delta in predicted.delta.items():
        torch.testing.assert_close(base[name] + delta, model.get_submodule(name).weight.detach(), rtol=1e-6, atol=1e-6)


FIELD_OF_ROWS = field_of([{"first": torch.zeros(1)}] * ROWS, [1] * ROWS, [1] * ROWS)
"""Counts of rows alone: what a schedule is made of."""


def test_dropout_leaves_the_mean_gradient_of_a_linear_loss_alone():
    """Over all 32 equally likely masks of peft's own layer, with B away from zero."""
    from itertools import product

    from peft import get_peft_model

    class Masked(nn.Module):
        def forward(self, x):
            return x * self.mask / (1 - 0.5)

    torch.manual_seed(3)
    adapter = AdapterSettings(r=2, lora_alpha=6, target_modules=["first"], lora_dropout=0.5)
    config = lora_config(adapter)
    config.task_type = None
    layer = get_peft_model(LinearTokens(), config).base_model.model.first
    assert layer.lora_dropout["default"].p == 0.5
    layer.lora_dropout["default"] = masked = Masked()
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    nn.init.normal_(up)
    d, x = torch.randn(6), torch.randn(5)
    total = [torch.zeros_like(down), torch.zeros_like(up)]
    for mask in product((0.0, 1.0), repeat=5):
        masked.mask = torch.tensor(mask)
        for kept, gradient in zip(total, torch.autograd.grad(d @ layer(x), (down, up)), strict=True):
            kept.add_(gradient / 2**5)
    adapted = LoraAdapter({"w": down.detach()}, lora_scale(adapter), {"w": 6})
    expected = adapted.gradients({"w.lora_A": down.detach(), "w.lora_B": up.detach()}, lambda *_: torch.outer(d, x), 0)
    torch.testing.assert_close(total[0], expected["w.lora_A"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(total[1], expected["w.lora_B"], rtol=1e-5, atol=1e-6)


def test_pairs_of_a_short_micro_batch_weigh_more_where_means_are_averaged():
    step = ((0, 1), (2,))
    assert row_shares(step, [1, 1, 1], by_micro_batch=True) == {0: 1 / 4, 1: 1 / 4, 2: 1 / 2}
    assert row_shares(step, [2, 3, 5]) == {0: 1 / 10, 1: 1 / 10, 2: 1 / 10}


def test_warm_up_by_steps_goes_before_the_ratio_and_is_whole():
    both = TrainingSettings.model_validate({"warmup_ratio": 0.5, "warmup_steps": 3, "epochs": 1, "batch_size": 1})
    assert both.warmup_steps(rows=20) == 3
    assert TrainingSettings.model_validate({"warmup_steps": None, "warmup_ratio": 0.1}).warmup_ratio == 0.1
    with pytest.raises(ValueError, match="a share below 1, or a whole number of steps"):
        TrainingSettings(warmup_ratio=2.5)
