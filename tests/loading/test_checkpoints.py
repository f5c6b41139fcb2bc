"""A written checkpoint is the base in form, base plus delta in content; a damaged one is never accepted."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from foretune.tasks.engine.invariants import BrokenInvariant
from foretune.tasks.loading import (
    AdapterSettings,
    AdapterTargets,
    load_model,
    lora_config,
    lora_scale,
    target_weights,
    verify_checkpoint,
    write_checkpoint,
)
from foretune.tasks.loading.stored import StoredWeights

from .conftest import settings


def random_deltas(loaded, targets, size=0.05):
    generator = torch.Generator().manual_seed(0)
    return {
        name: size * torch.randn(weight.shape, generator=generator)
        for name, weight in target_weights(loaded, targets).items()
    }


@pytest.mark.parametrize(
    ("family", "modules"),
    [("llama", ["q_proj", "v_proj"]), ("gpt2", ["c_attn", "c_fc"]), ("gpt_neox", "all-linear")],
)
def test_a_checkpoint_holds_what_peft_merges(opened, folder_of, tmp_path, family, modules, batch):
    """The same LoRA factors, merged by peft into the library's own model, give the same logits."""
    adapter = AdapterSettings(r=3, lora_alpha=5, target_modules=modules)
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(folder_of(family)), lora_config(adapter))
    deltas = {}
    for name, module in tuned.named_modules():
        if hasattr(module, "lora_A") and name.startswith("base_model.model."):
            torch.nn.init.normal_(module.lora_B["default"].weight, std=0.1)
            product = module.lora_B["default"].weight @ module.lora_A["default"].weight
            deltas[f"{name.removeprefix('base_model.model.')}.weight"] = (lora_scale(adapter) * product).detach()
    write_checkpoint(tmp_path / "out", opened(family), deltas, folder_of(family))
    merged = tuned.merge_and_unload().eval()
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        torch.testing.assert_close(
            written(batch.input_ids).logits, merged(batch.input_ids).logits, atol=2e-5, rtol=1e-4
        )


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "gemma2"])
def test_keys_dtypes_shapes_and_tokenizer_are_the_base_s(opened, folder_of, tmp_path, family):
    base = folder_of(family)
    loaded = opened(family)
    write_checkpoint(tmp_path / "out", loaded, random_deltas(loaded, AdapterTargets(method="full")), base)
    check = verify_checkpoint(tmp_path / "out", base, settings(base))
    stored, written = load_file(base / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert {k: (v.dtype, v.shape) for k, v in stored.items()} == {k: (v.dtype, v.shape) for k, v in written.items()}
    assert check.tensors == len(stored) and check.largest_logit > 0
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == (
        AutoTokenizer.from_pretrained(base).chat_template
    )


def test_tensors_without_a_delta_are_copied_bit_by_bit(opened, tiny_llama, tmp_path):
    deltas = random_deltas(opened("llama"), AdapterTargets())
    write_checkpoint(tmp_path / "out", opened("llama"), deltas, tiny_llama)
    base, new = StoredWeights(tiny_llama), StoredWeights(tmp_path / "out")
    moved = {key for key in base.layout() if not torch.equal(base[key], new[key])}
    assert moved == set(deltas)


def test_the_same_checkpoint_is_the_same_bytes(opened, tiny_llama, tmp_path):
    deltas = random_deltas(opened("llama"), AdapterTargets())
    for name in ("one", "two"):
        write_checkpoint(tmp_path / name, opened("llama"), deltas, tiny_llama, max_shard_size="20KB")
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)


def test_shards_keep_to_their_size_and_hold_everything(opened, tiny_llama, tmp_path):
    deltas = random_deltas(opened("llama"), AdapterTargets())
    write_checkpoint(tmp_path / "whole", opened("llama"), deltas, tiny_llama)
    write_checkpoint(tmp_path / "out", opened("llama"), deltas, tiny_llama, max_shard_size="20KB")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    names = sorted(set(index["weight_map"].values()))
    assert names[0] == f"model-00001-of-{len(names):05d}.safetensors" and len(names) > 2
    for name in names:
        tensors = load_file(tmp_path / "out" / name)
        assert len(tensors) == 1 or sum(t.nbytes for t in tensors.values()) <= 20_000
        assert all(index["weight_map"][key] == name for key in tensors)
    whole, parts = StoredWeights(tmp_path / "whole"), StoredWeights(tmp_path / "out")
    assert all(torch.equal(whole[key], parts[key]) for key in whole.layout())
    assert index["metadata"]["total_size"] == sum(form.bytes for form in whole.layout().values())
    verify_checkpoint(tmp_path / "out", tiny_llama, settings(tiny_llama))


def half_precision(folder, out, **save):
    shutil.copytree(folder, out)
    tensors = {key: tensor.bfloat16() for key, tensor in load_file(out / "model.safetensors").items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def test_a_half_precision_base_is_summed_in_float32_and_rounded_once(tiny_llama, tmp_path):
    base = half_precision(tiny_llama, tmp_path / "base")
    loaded = load_model(base, settings(base))
    deltas = random_deltas(loaded, AdapterTargets(), size=0.01)
    write_checkpoint(tmp_path / "out", loaded, deltas, base)
    stored, written = StoredWeights(base), StoredWeights(tmp_path / "out")
    for name, delta in deltas.items():
        expected = (stored[name].double() + delta.double()).to(torch.bfloat16)
        assert written[name].dtype == torch.bfloat16
        # float32 and float64 sums can round apart in one case of thousands, by one unit.
        assert (written[name] != expected).float().mean() < 1e-3
    verify_checkpoint(tmp_path / "out", base, settings(base))


def test_stored_names_without_the_model_s_prefix_are_kept(opened, folder_of, tmp_path, batch):
    """The hub's GPT-2 stores `h.0.attn...` without `transformer.`, and a mask that is no parameter."""
    base = shutil.copytree(folder_of("gpt2"), tmp_path / "base")
    tensors = {k.removeprefix("transformer."): t for k, t in load_file(base / "model.safetensors").items()}
    tensors["h.0.attn.bias"] = torch.tril(torch.ones(256, 256)).view(1, 1, 256, 256)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    loaded = load_model(base, settings(base))
    deltas = random_deltas(loaded, AdapterTargets(target_modules=["c_attn"]))
    write_checkpoint(tmp_path / "out", loaded, deltas, base)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == tensors.keys()
    change = written["h.1.attn.c_attn.weight"] - tensors["h.1.attn.c_attn.weight"]
    torch.testing.assert_close(change.T, deltas["transformer.h.1.attn.c_attn.weight"], atol=1e-6, rtol=1e-5)


def test_a_tied_weight_that_is_stored_twice_moves_twice(opened, tiny_llama, tmp_path):
    base = shutil.copytree(tiny_llama, tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    deltas = {"model.embed_tokens.weight": torch.full((259, 32), 0.5)}
    write_checkpoint(tmp_path / "out", load_model(base, settings(base)), deltas, base)
    written = StoredWeights(tmp_path / "out")
    assert torch.equal(written["lm_head.weight"], written["model.embed_tokens.weight"])
    assert torch.equal(written["lm_head.weight"], tensors["lm_head.weight"] + 0.5)


def test_a_pickled_base_becomes_a_safetensors_checkpoint(tiny_llama, tmp_path):
    base = shutil.copytree(tiny_llama, tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    torch.save(tensors, base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    loaded = load_model(base, settings(base, allow_pickle=True))
    write_checkpoint(tmp_path / "out", loaded, random_deltas(loaded, AdapterTargets()), base)
    assert not (tmp_path / "out" / "pytorch_model.bin").exists()
    assert verify_checkpoint(tmp_path / "out", base, settings(base)).tensors == len(tensors)


def test_a_delta_of_another_shape_is_refused_with_both(opened, tiny_llama, tmp_path):
    with pytest.raises(ValueError, match=r"q_proj.weight is \[32, 32\] in the base model, its delta is \[8, 32\]"):
        write_checkpoint(
            tmp_path / "out",
            opened("llama"),
            {"model.layers.0.self_attn.q_proj.weight": torch.zeros(8, 32)},
            tiny_llama,
        )


def test_a_delta_that_is_not_finite_breaks_an_invariant(opened, tiny_llama, tmp_path):
    delta = {"model.norm.weight": torch.full((32,), float("nan"))}
    with pytest.raises(BrokenInvariant, match=r"model.norm.weight plus its delta is not finite in torch.float32"):
        write_checkpoint(tmp_path / "out", opened("llama"), delta, tiny_llama)


@pytest.fixture
def written(opened, tiny_llama, tmp_path):
    write_checkpoint(tmp_path / "out", opened("llama"), random_deltas(opened("llama"), AdapterTargets()), tiny_llama)
    return tmp_path / "out"


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_lost_tensor_is_seen(written, tiny_llama):
    rewrite(written, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(BrokenInvariant, match=r"model.norm.weight is absent, in the base model F32 \[32\]"):
        verify_checkpoint(written, tiny_llama)


def test_another_dtype_is_seen(written, tiny_llama):
    rewrite(written, lambda tensors: tensors.update({"model.norm.weight": torch.ones(32).half()}))
    with pytest.raises(BrokenInvariant, match=r"model.norm.weight is F16 \[32\], in the base model F32 \[32\]"):
        verify_checkpoint(written, tiny_llama)


def test_another_tokenizer_is_seen(written, tiny_llama):
    (written / "tokenizer_config.json").write_text("{}")
    with pytest.raises(BrokenInvariant, match=r"tokenizer_config.json is not the base model's"):
        verify_checkpoint(written, tiny_llama)


def test_logits_that_are_not_finite_are_seen(written, tiny_llama):
    rewrite(written, lambda tensors: tensors["model.norm.weight"].fill_(3e38))
    with pytest.raises(BrokenInvariant, match=r"its logits are not finite"):
        verify_checkpoint(written, tiny_llama)


def test_stored_forms_of_pickled_tensors_are_named_as_in_safetensors(tmp_path):
    tensors = {
        str(dtype): torch.zeros(2, 3, dtype=dtype)
        for dtype in (
            torch.float64,
            torch.float32,
            torch.float16,
            torch.bfloat16,
            torch.int64,
            torch.int32,
            torch.int16,
            torch.int8,
            torch.uint8,
            torch.bool,
        )
    }
    for folder in ("pickled", "mapped"):
        (tmp_path / folder).mkdir()
    torch.save(tensors, tmp_path / "pickled" / "pytorch_model.bin")
    save_file(tensors, tmp_path / "mapped" / "model.safetensors")
    mapped = StoredWeights(tmp_path / "mapped").layout()
    assert StoredWeights(tmp_path / "pickled").layout() == mapped
    assert all(form.bytes == tensors[key].nbytes for key, form in mapped.items())


def test_a_checkpoint_that_lost_a_tensor_is_refused(tiny_llama, tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_llama, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.norm.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Exception, match="model.norm.weight"):
        verify_checkpoint(folder, tiny_llama)
