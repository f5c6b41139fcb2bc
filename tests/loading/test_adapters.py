"""Adapters hold what peft holds: the same modules, the same start, the same scale."""

from __future__ import annotations

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from foretune.storage.errors import BadInput
from foretune.tasks.loading import AdapterSettings, AdapterTargets, lora_config, lora_init, lora_scale, target_weights


def peft_model(folder, adapter, seed=3, dtype=torch.float32):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    torch.manual_seed(seed)
    return get_peft_model(model, lora_config(adapter))


def peft_factors(model):
    """{weight name: A} as peft holds it."""
    found = {}
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.default.weight")
            found[f"{module}.weight"] = parameter.detach()
    return found


TARGETS = [
    ("llama", ["q_proj", "v_proj"]),
    ("llama", "all-linear"),
    ("llama", ["model.layers.1.mlp.down_proj"]),
    ("gpt2", ["c_attn"]),
    ("gpt2", "all-linear"),
    ("qwen2", ["k_proj", "up_proj"]),
    ("gemma2", "all-linear"),
    ("gpt_neox", ["query_key_value", "dense"]),
]


@pytest.mark.parametrize(("family", "modules"), TARGETS)
def test_lora_adapts_the_modules_that_peft_adapts(opened, folder_of, family, modules):
    adapter = AdapterSettings(target_modules=modules)
    expected = list(peft_factors(peft_model(folder_of(family), adapter)))
    assert list(target_weights(opened(family), adapter.targets)) == expected


@pytest.mark.parametrize(("family", "modules"), TARGETS)
def test_lora_starts_where_peft_starts_under_the_same_seed(opened, folder_of, family, modules):
    adapter = AdapterSettings(r=5, target_modules=modules, lora_dropout=0.1)
    expected = peft_factors(peft_model(folder_of(family), adapter, seed=11))
    shapes = {name: tuple(weight.shape) for name, weight in target_weights(opened(family), adapter.targets).items()}
    drawn = lora_init(shapes, adapter, seed=11)
    assert list(drawn) == list(expected)
    assert all(torch.equal(drawn[name], expected[name]) for name in expected)


def test_lora_of_a_half_precision_model_starts_rounded_as_in_peft(opened, tiny_llama):
    adapter = AdapterSettings()
    expected = peft_factors(peft_model(tiny_llama, adapter, dtype=torch.bfloat16))
    shapes = {name: tuple(weight.shape) for name, weight in target_weights(opened("llama"), adapter.targets).items()}
    drawn = lora_init(shapes, adapter, seed=3, dtype=torch.bfloat16)
    assert all(torch.equal(drawn[name], expected[name]) for name in expected)
    assert next(iter(expected.values())).dtype == torch.float32


def test_drawing_lora_s_start_leaves_the_process_s_random_state_alone():
    before = torch.get_rng_state()
    lora_init({"w": (8, 4)}, AdapterSettings(), seed=1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("rslora", [False, True])
def test_the_scale_is_peft_s(tiny_llama, rslora):
    adapter = AdapterSettings(r=4, lora_alpha=6, use_rslora=rslora)
    layer = peft_model(tiny_llama, adapter).base_model.model.model.layers[0].self_attn.q_proj
    assert lora_scale(adapter) == layer.scaling["default"]
    assert lora_scale(adapter) == pytest.approx(6 / (math.sqrt(4) if rslora else 4))


def test_full_fine_tuning_moves_every_parameter_and_a_tied_one_once(opened):
    weights = target_weights(opened("llama"), AdapterTargets(method="full"))
    assert "model.embed_tokens.weight" in weights and "lm_head.weight" not in weights
    assert sum(weight.numel() for weight in weights.values()) == opened("llama").model.num_parameters()
    assert "lm_head.weight" in target_weights(opened("qwen2"), AdapterTargets(method="full"))


def test_a_target_that_matches_nothing_lists_what_there_is_nearest_first(opened):
    with pytest.raises(
        BadInput,
        match=r"adapter.target_modules: q_prj matches no module of LlamaForCausalLM; "
        r"its linear modules are q_proj, .*, lm_head",
    ):
        target_weights(opened("llama"), AdapterTargets(target_modules=["q_prj"]))
    with pytest.raises(BadInput, match=r"q_proj, v_proj matches no module of GPT2LMHeadModel; .* c_attn"):
        target_weights(opened("gpt2"), AdapterTargets())


@pytest.mark.parametrize(("target", "kind"), [("embed_tokens", "Embedding"), ("input_layernorm", "LlamaRMSNorm")])
def test_a_target_that_is_not_linear_is_bad_input(opened, target, kind):
    with pytest.raises(BadInput, match=rf"{target} is a {kind}; only linear modules can be simulated"):
        target_weights(opened("llama"), AdapterTargets(target_modules=[target]))


def test_a_tied_head_is_no_target(opened):
    with pytest.raises(BadInput, match=r"lm_head shares its weight with the embedding, .* leave it out"):
        target_weights(opened("llama"), AdapterTargets(target_modules=["lm_head"]))
    assert list(target_weights(opened("qwen2"), AdapterTargets(target_modules=["lm_head"]))) == ["lm_head.weight"]


def test_finding_targets_leaves_the_model_without_adapters(opened):
    names = [name for name, _ in opened("llama").model.named_modules()]
    target_weights(opened("llama"), AdapterTargets(target_modules="all-linear"))
    assert [name for name, _ in opened("llama").model.named_modules()] == names


def test_targets_do_not_depend_on_rank_and_scale():
    assert AdapterSettings(r=4).targets == AdapterSettings(r=64, lora_alpha=1, use_rslora=True).targets
    assert AdapterSettings(method="full").targets == AdapterSettings(method="full", target_modules=["x"]).targets
    assert AdapterSettings(target_modules=["all-linear"]).targets.target_modules == "all-linear"


def test_the_training_configuration_is_peft_s_own():
    config = lora_config(AdapterSettings(r=4, lora_alpha=7, lora_dropout=0.2, use_rslora=True))
    assert isinstance(config, LoraConfig)
    assert (config.r, config.lora_alpha, config.lora_dropout, config.use_rslora) == (4, 7, 0.2, True)
