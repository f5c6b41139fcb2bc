"""What a model would give, seen before anything runs: weights that can be adapted and written back."""

from __future__ import annotations

import json

import pytest
import torch
import transformers as t

from foretune.storage.errors import BadInput
from foretune.tasks.loading import (
    AdapterTargets,
    check_model,
    load_model,
    target_weights,
    verify_checkpoint,
    write_checkpoint,
)

from .conftest import settings

SIZES = {"vocab_size": 259, "hidden_size": 32, "num_hidden_layers": 2}


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixtral")
    config = t.MixtralConfig(
        **SIZES, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, num_local_experts=4
    )
    t.MixtralForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def mamba(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mamba")
    t.MambaForCausalLM(t.MambaConfig(**SIZES, state_size=4)).save_pretrained(folder)
    return folder


def test_experts_that_the_files_keep_apart_cannot_be_fine_tuned_whole(mixtral):
    with pytest.raises(
        BadInput,
        match=r"adapter.method full: MixtralForCausalLM keeps model.layers.0.mlp.* in another layout than its files",
    ):
        check_model(mixtral, settings(mixtral), AdapterTargets(method="full"))
    check_model(mixtral, settings(mixtral), AdapterTargets())


def test_experts_that_the_files_keep_in_one_tensor_cannot_either(tmp_path):
    config = t.GptOssConfig(
        **SIZES, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, head_dim=8
    )
    t.GptOssForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(
        BadInput, match=r"method full: GptOssForCausalLM keeps its experts in one tensor \(model.layers"
    ):
        check_model(tmp_path, settings(tmp_path), AdapterTargets(method="full"))
    check_model(tmp_path, settings(tmp_path), AdapterTargets())


@pytest.mark.parametrize("modules", [["in_proj", "out_proj"], "all-linear"])
def test_what_peft_says_of_a_module_is_said(mamba, modules):
    with pytest.raises(
        BadInput, match=r"target_modules: Module 'out_proj' is incompatible with Mamba-based models .*; leave it out"
    ):
        check_model(mamba, settings(mamba), AdapterTargets(target_modules=modules))
    check_model(mamba, settings(mamba), AdapterTargets(target_modules=["in_proj", "x_proj"]))


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "gemma2", "gpt_neox"])
def test_the_skeleton_has_the_weights_of_the_model(folder_of, opened, family):
    folder = folder_of(family)
    full = [] if family == "gpt_neox" else [AdapterTargets(method="full")]  # its files call the head embed_out
    for targets in (*full, AdapterTargets(target_modules="all-linear")):
        check_model(folder, settings(folder), targets)
        assert target_weights(opened(family), targets)
    with pytest.raises(BadInput, match=r"nothing matches no module of"):
        check_model(folder, settings(folder), AdapterTargets(target_modules=["nothing"]))


def test_a_bert_is_no_causal_language_model(tmp_path):
    config = t.BertConfig(**SIZES, num_attention_heads=4, intermediate_size=48)
    t.BertForMaskedLM(config).save_pretrained(tmp_path)
    with pytest.raises(BadInput, match=r"BertForMaskedLM predicts masked tokens"):
        check_model(tmp_path, settings(tmp_path))


def test_a_model_without_its_head_is_refused(tmp_path):
    t.Qwen2Model(t.Qwen2Config(**SIZES, num_attention_heads=4, num_key_value_heads=2)).save_pretrained(tmp_path)
    with pytest.raises(BadInput, match=r"1 tensors are missing, first lm_head.weight"):
        check_model(tmp_path, settings(tmp_path))


def test_the_masks_of_old_checkpoints_are_no_quantised_weights(folder_of, tmp_path):
    """GPT-2's first checkpoints hold attention masks as tensors of bytes."""
    import shutil

    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(folder_of("gpt2"), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    for layer in range(2):
        tensors[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 256, 256, dtype=torch.uint8).tril()
        tensors[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    check_model(folder, settings(folder), AdapterTargets(target_modules=["c_attn"]))


def test_every_configuration_file_goes_into_the_checkpoint(llama_copy, tmp_path):
    names = ["preprocessor_config.json", "processor_config.json", "additional_chat_templates/tool_use.jinja"]
    (llama_copy / "additional_chat_templates").mkdir()
    for name in names:
        (llama_copy / name).write_text(json.dumps({"of": name}))
    loaded = load_model(llama_copy, settings(llama_copy))
    write_checkpoint(tmp_path / "out", loaded, {}, llama_copy)
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (llama_copy / name).read_bytes()
    verify_checkpoint(tmp_path / "out", llama_copy, settings(llama_copy))
    (tmp_path / "out" / names[-1]).unlink()
    with pytest.raises(Exception, match=r"tool_use.jinja is not the base model's"):
        verify_checkpoint(tmp_path / "out", llama_copy, settings(llama_copy))
